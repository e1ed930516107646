"""Counts the kernels of attention in steps of a transformer for a TPU, which need not be there, and compiles them.

Command: python attention_on_tpu.py CHIP, in its environment.
"""

import json
import sys

import jax
import jax.numpy as jnp

from benchmarks.hardware import Dtype
from benchmarks.peers.steps import make_config
from benchmarks.tasks import KINDS
from benchmarks.tpu_estimates import CHIPS
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import BATCH, TENSOR, P, make_mesh, sharding
from gnp_scale.models.attention import attend
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step


def lowered(mesh: jax.sharding.Mesh, dtype: Dtype, kind: str) -> jax.stages.Lowered:
    config = make_config(ModelConfig("vit_b", dtype=dtype, depth=1), batch_size=16, num_classes=128)
    with jax.set_mesh(mesh):
        task = Task.of(config)
        shapes = task.abstract_state(), task.abstract_batch()
        traced = make_train_step(task).trace(*shapes, kind=KINDS[kind])
    return traced.lower(lowering_platforms=("tpu",))


def compiled_alone(mesh: jax.sharding.Mesh) -> str:
    """The gradient of what the network of `lowered` attends to, in float32. To compile all of a step takes a minute."""
    with jax.set_mesh(mesh):
        array = jax.ShapeDtypeStruct((16, 197, 12, 64), "float32", sharding=sharding(P(BATCH, None, TENSOR, None)))
        gradient = jax.grad(lambda *arrays: jnp.sum(attend(*arrays) ** 2), argnums=(0, 1, 2))
        return jax.jit(gradient).trace(*[array] * 3).lower(lowering_platforms=("tpu",)).compile().as_text()


def num_calls(text: str) -> int:
    return sum("tpu_custom_call" in line and "block_attention" in line for line in text.splitlines())


if __name__ == "__main__":
    mesh = make_mesh(MeshConfig(tensor=2), CHIPS[sys.argv[1]].devices())
    found = {
        "bfloat16": num_calls(lowered(mesh, "bfloat16", "penalised").as_text()),
        "float32": num_calls(lowered(mesh, "float32", "plain").as_text()),
        "compiled": num_calls(compiled_alone(mesh)),
    }
    print(json.dumps(found))
