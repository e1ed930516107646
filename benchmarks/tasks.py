"""The tasks of the benchmarks: two small networks on synthetic images, on one device."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.training.setup import Task
from gnp_scale.training.step import Batch, make_train_step

KINDS = {"plain": StepKind.PLAIN, "penalised": StepKind.FULL}
BATCH_SIZE = 32
MODELS = {
    "ViT-Ti, 6 blocks, patch 4": ModelConfig(name="vit_ti", patch_size=4, depth=6),
    "ResNet-18, CIFAR stem": ModelConfig(name="resnet18", stem="cifar", num_bn_groups=4),
}
SETTING = f"32 x 32 images, batch {BATCH_SIZE}, crop and flip, SGD with momentum, float32, one device."


def noise(batch_size: int, image_size: int = 224, num_classes: int = 1000) -> DataConfig:
    """One batch of synthetic images, by default of the size and classes of ImageNet."""
    return DataConfig(
        name="synthetic",
        batch_size=batch_size,
        eval_batch_size=batch_size,
        synthetic_num_examples=batch_size,
        synthetic_image_size=image_size,
        synthetic_num_classes=num_classes,
    )


def make_task(model: ModelConfig, gnp: GnpConfig) -> Task:
    """Training of `model` with the penalty `gnp`, on the current mesh."""
    return Task.of(
        Config(
            data=DataConfig(name="synthetic", batch_size=BATCH_SIZE, crop_padding=4, flip=True),
            model=model,
            gnp=gnp,
            optim=OptimConfig(name="sgd"),
            train=TrainConfig(num_steps=1000),
        )
    )


def make_batch(task: Task) -> Batch:
    """The first batch, on the devices."""
    return next(train_batches(task.dataset, task.config.data, seed=0, start_step=0, num_steps=1))


def compile_steps(task: Task, kinds: Sequence[int]) -> dict[int, Any]:
    """The compiled step of each of `kinds`."""
    train_step = make_train_step(task)
    state, batch = task.abstract_state(), task.abstract_batch()
    return {kind: train_step.lower(state, batch, kind=kind).compile() for kind in set(kinds)}


def updates(task: Task, compiled: dict[int, Any], kinds: Sequence[int]) -> Callable[[], Any]:
    """A function that makes an update of each of `kinds`, with its own state."""
    state, batch = task.init_state(), make_batch(task)

    def run() -> Any:
        nonlocal state
        metrics: Any = None
        for kind in kinds:
            state, metrics = compiled[kind](state, batch)
        return state, metrics

    jax.block_until_ready(state)
    return run
