"""Compiles steps of a transformer for a TPU, which need not be there; counts its kernels of attention.

Command: python attention_on_tpu.py CHIP, in its environment.
"""

import json
import sys

import jax

from benchmarks.hardware import Dtype
from benchmarks.peers.steps import make_config
from benchmarks.tasks import KINDS
from benchmarks.tpu_estimates import CHIPS
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step


def lowered(mesh: jax.sharding.Mesh, dtype: Dtype, kind: str) -> jax.stages.Lowered:
    config = make_config(ModelConfig("vit_b", dtype=dtype, depth=1), batch_size=16, num_classes=128)
    with jax.set_mesh(mesh):
        task = Task.of(config)
        shapes = task.abstract_state(), task.abstract_batch()
        traced = make_train_step(task).trace(*shapes, kind=KINDS[kind])
    return traced.lower(lowering_platforms=("tpu",))


def num_calls(text: str) -> int:
    return sum("tpu_custom_call" in line and "block_attention" in line for line in text.splitlines())


if __name__ == "__main__":
    mesh = make_mesh(MeshConfig(tensor=2), CHIPS[sys.argv[1]].devices())
    found = {
        "bfloat16": num_calls(lowered(mesh, "bfloat16", "penalised").as_text()),
        "float32": num_calls(lowered(mesh, "float32", "plain").compile().as_text()),
    }
    print(json.dumps(found))
