"""Compiles the kernels for TPUs that need not be there: `python tpu_compiled.py CHIP FOLDER` prints what came out."""

import json
import re
import sys
from pathlib import Path

import gnp_kernels
import jax
import jax.numpy as jnp
from gnp_kernels.pallas_plan import Plan
from jax.sharding import PartitionSpec as P

from benchmarks import kernels_tpu
from benchmarks.tpu_estimates import CHIPS, Kernel, Xla, schedules
from gnp_scale.config import MeshConfig
from gnp_scale.mesh import make_mesh

SHAPES = (
    (16, 16, 3, 768), (196, 768), (768,), (768, 3, 12, 64), (3, 12, 64), (12, 64, 768), (768,), (768, 3072), (3072,),
    (3072, 768), (768,), (768, 1000), (1000,), (7, 7, 3, 64), (64,), (3, 3, 64, 64), (64,), (1, 1, 64, 256), (256,),
    (3, 3, 256, 256), (2048,), (1, 1, 512, 2048),
)  # fmt: skip
"""Leaves of a vision transformer and of a residual network."""
FSDP = {
    (768, 3072): P("fsdp"),
    (3072, 768): P(None, "fsdp"),
    (3, 3, 256, 256): P(None, None, None, "fsdp"),
    (3072,): P(),
}


def main(chip_name: str, dump: Path) -> None:
    chip = CHIPS[chip_name]
    mesh = make_mesh(MeshConfig(), chip.devices()[:1])
    tree = [jax.ShapeDtypeStruct(x, jnp.float32, sharding=jax.NamedSharding(mesh, P())) for x in SHAPES]
    programs = {"perturb": ((tree, tree), ()), "update": ((tree, (tree, tree), tree, tree), (0, 1))}
    for name, (arguments, donated) in programs.items():
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            report(chip_name, name, arguments, donated, dump)
    mesh = make_mesh(MeshConfig(fsdp=4), chip.devices()[:4])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        print(json.dumps({"program": "shards", "kernels": kernel_names(sharded_text(mesh))}))


def report(chip_name: str, name: str, arguments: tuple, donated: tuple[int, ...], dump: Path) -> None:
    """Prints a line on one program."""
    chip, program = CHIPS[chip_name], getattr(kernels_tpu, name)
    text = compiled(lambda *xs: program("pallas", *xs), arguments, donated)
    num_cores = chip.devices()[0].num_cores
    plans = {name: Plan(SHAPES, **options, num_cores=num_cores) for name, options in kernels_tpu.PLANS.items()}
    kernels = [Kernel.of(x, plans[x.name], chip) for x in schedules(dump)]
    for file in dump.iterdir():
        file.unlink()
    line = {
        "program": name,
        "kernels": kernel_names(text),
        "copies": re.findall(r"= \S+ (?:copy|copy-start|transpose|reshape)\(.*", text),
        "worst_block": max(kernel.worst_block for kernel in kernels),
        "num_vector_spills": sum(kernel.num_vector_spills for kernel in kernels),
    }
    if chip_name == "v5p":
        xla = Xla.of(compiled(lambda *xs: program("xla", *xs), arguments, donated))
        cycles = sum(kernel.cycles(chip.bytes_per_cycle) + xla.call_cycles for kernel in kernels)
        line["ratio"] = (Xla.of(text).cycles + cycles) / xla.cycles
    print(json.dumps(line))


def sharded_text(mesh: jax.sharding.Mesh) -> str:
    """All kernels on the shards of a few leaves, with bfloat16 gradients and copies, compiled for the whole mesh."""
    specs = list(FSDP.values())
    trees = [
        [jax.ShapeDtypeStruct(x, dtype, sharding=jax.NamedSharding(mesh, spec)) for x, spec in FSDP.items()]
        for dtype in (jnp.float32, jnp.float32, jnp.bfloat16, jnp.bfloat16)
    ]

    @jax.shard_map(in_specs=(specs,) * 4, out_specs=(specs, specs, specs))
    def step(w, m, g1, g2):
        # A leaf that every device holds is summed once for each; here only the types matter.
        sharded = jax.lax.psum(gnp_kernels.squared_norm(g1[:3], implementation="pallas"), "fsdp")
        scale = 0.05 / jnp.sqrt(sharded + gnp_kernels.squared_norm(g1[3:], implementation="pallas"))
        options = {"dtype": jnp.bfloat16, "implementation": "pallas"}
        moved = gnp_kernels.perturb(w[:3], g1[:3], scale, **options)
        moved += gnp_kernels.perturb(w[3:], g1[3:], scale, **options)
        c2 = jax.lax.psum(gnp_kernels.dots(g1[:3], g2[:3], implementation="pallas").a_b, "fsdp")
        parts = [
            gnp_kernels.blend_update(
                w[part], g1[part], g2[part], (m[part],), rule=gnp_kernels.Sgd(0.9, True, 1e-4), c1=0.2, c2=c2,
                learning_rate=0.1, copy_dtype=jnp.bfloat16, implementation="pallas",
            )
            for part in (slice(3), slice(3, None))
        ]  # fmt: skip
        return moved, parts[0].params + parts[1].params, parts[0].copy + parts[1].copy

    return compiled(step, trees, (0, 1))


def compiled(program, arguments, donated: tuple[int, ...]) -> str:
    traced = jax.jit(program, donate_argnums=donated).trace(*arguments)
    return traced.lower(lowering_platforms=("tpu",)).compile().as_text()


def kernel_names(text: str) -> list[str]:
    """Names of the kernels that a program calls."""
    return re.findall(r'custom_call_target="tpu_custom_call".*?op_name="[^"]*/(gnp_\w+)/', text)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
