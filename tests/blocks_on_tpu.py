"""Compiles gradients of small scanned vision transformers for four TPU v5e: `python blocks_on_tpu.py FOLDER CASE ...`.

For each case it writes what `Found` has, as JSON.
"""

import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import batch_spec, make_mesh, sharding
from gnp_scale.models import registry
from gnp_scale.planning import collectives
from gnp_scale.planning.hlo import Program

DEPTH, WIDTH, NUM_TOKENS = 3, 128, 64
MODEL = ModelConfig("vit_mu", 4, depth=DEPTH, width=WIDTH, num_heads=2, dtype="bfloat16", attention="xla")
IMAGE_SHAPE = (32, 32, 3)
FSDP, REPLICA, TENSOR = MeshConfig(1, 4, 1), MeshConfig(2, 2, 1), MeshConfig(1, 2, 2)
FEW, MANY = 64, 1024
"""Examples: with few, all temporary arrays fit on the chip, and the compiler takes a quarter of the time."""


class Case(NamedTuple):
    """A program to compile."""

    mesh: MeshConfig
    num_examples: int = FEW
    options: dict[str, object] = {}


CASES = {
    "fsdp": Case(FSDP),
    "replica": Case(REPLICA),
    "tensor": Case(TENSOR),
    "tokens": Case(TENSOR, options={"sequence_parallel": True}),
    "offload": Case(FSDP, options={"remat": "offload"}),
    **{remat: Case(FSDP, MANY, {"remat": remat}) for remat in ("none", "dots", "block")},
}


def compiled(case: Case, devices: list[jax.Device]) -> tuple[jax.sharding.Mesh, jax.stages.Compiled]:
    """The mesh, and the program of a gradient."""
    mesh = make_mesh(case.mesh, devices)
    with jax.set_mesh(mesh):
        config = ModelConfig(**vars(MODEL) | {"scan_layers": True} | case.options)
        model = registry.create(config, IMAGE_SHAPE, 10, case.num_examples)
        params, _ = jax.eval_shape(lambda: model.init(jax.random.key(0)))

        def loss(params: registry.Params, image: jax.Array) -> jax.Array:
            return jnp.mean(jnp.square(model.network(params, {})(image, train=True)))

        image = jax.ShapeDtypeStruct((case.num_examples, *IMAGE_SHAPE), "float32", sharding=sharding(batch_spec(4)))
        return mesh, jax.jit(jax.grad(loss)).trace(params, image).lower(lowering_platforms=("tpu",)).compile()


def main(folder: Path, names: list[str]) -> None:
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices
    for name in names:
        mesh, program = compiled(CASES[name], devices)
        found = collectives.find(Program.parse(program.as_text()), mesh, math.prod(mesh.devices.shape))
        memory = program.memory_analysis()
        result = {
            "collectives": [[each.kind, list(each.axes), each.num_bytes, each.runs] for each in found],
            "device_bytes": memory.temp_size_in_bytes,
            "host_bytes": memory.host_temp_size_in_bytes,
        }
        (folder / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
