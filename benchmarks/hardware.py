"""Meshes of absent accelerators, and training steps compiled for them by their real compilers."""

from typing import Literal

import jax
from jax.experimental import topologies

from benchmarks.tasks import noise
from gnp_scale.config import (
    Config,
    GnpConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.config.optim import OptimizerName
from gnp_scale.config.run import Kernels
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.planning.hardware import Cluster
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

Dtype = Literal["float32", "bfloat16"]
MODELS: dict[str, tuple[str, OptimizerName]] = {"ViT-B/16": ("vit_b", "adamw"), "ResNet-50": ("resnet50", "sgd")}
"""Network and optimizer."""


def h100_mesh() -> jax.sharding.Mesh:
    """Eight H100 in one host, the parameters sharded over all."""
    return make_mesh(MeshConfig(), h100_devices(8))


def h100_devices(num_devices: int) -> list[jax.Device]:
    """H100 of one host."""
    return Cluster(f"h100:{num_devices}x1").devices()


def tpu_mesh(name: str) -> jax.sharding.Mesh:
    """A TPU slice such as "v5p:2x2x1", with the parameters sharded over all chips."""
    topology = topologies.get_topology_desc(platform="tpu", topology_name=name)
    return make_mesh(MeshConfig(), topology.devices)


def compiled_step(
    mesh: jax.sharding.Mesh, model: str, kernels: Kernels, dtype: Dtype = "float32", depth: int | None = None
) -> str:
    """HLO of `lowered_step`, compiled for the devices of `mesh`."""
    text = lowered_step(mesh, model, kernels, dtype, depth).compile().as_text()
    assert text is not None
    return text


def lowered_step(
    mesh: jax.sharding.Mesh, model: str, kernels: Kernels, dtype: Dtype = "float32", depth: int | None = None
) -> jax.stages.Lowered:
    """The penalised step of `model` on 224 x 224 images, for the devices of `mesh`.

    With `dtype` "bfloat16" the model and the gradients use that type; `depth` is the number of blocks of a transformer.
    """
    name, optimizer = MODELS[model]
    config = Config(
        data=noise(64),
        model=ModelConfig(name, dtype=dtype, depth=depth),
        gnp=GnpConfig(),
        optim=OptimConfig(optimizer, clip_norm=1.0, weight_decay=0.1),
        train=TrainConfig(kernels=kernels, gradient_dtype=dtype),
    )
    # XLA's name for the compiler for GPUs, not JAX's.
    platform = {"gpu": "cuda"}.get(mesh.devices.flat[0].platform, mesh.devices.flat[0].platform)
    with jax.set_mesh(mesh):
        task = Task.of(config)
        traced = make_train_step(task).trace(task.abstract_state(), task.abstract_batch(), kind=StepKind.FULL)
        return traced.lower(lowering_platforms=(platform,))
