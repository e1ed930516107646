"""The tables of the benchmark: data, network and schedule of each, and the methods that it compares.

All values are this project's own choice, for two CPU cores.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gnp_scale.config import CheckpointConfig, Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.evidence.methods import GATED, GROUPED, GROUPED_BATCH, METHODS, Method

NUM_EVALUATIONS = 15
"""Of each run, so that each method chooses its best checkpoint among equally many; it divides the number of steps."""


@dataclass(frozen=True)
class Table:
    """An experiment: one network on one data set, trained by several methods."""

    about: str
    num_steps: int
    config: Callable[[int], Config]
    """Plain training of so many steps."""
    methods: Mapping[str, Method]


def _config(data: DataConfig, model: ModelConfig, optim: OptimConfig, num_steps: int) -> Config:
    every = max(1, num_steps // NUM_EVALUATIONS)
    train = TrainConfig(num_steps=num_steps, log_every_steps=every, eval_every_steps=every)
    checkpoint = CheckpointConfig(every_steps=max(1, num_steps // 3), keep_last=1, keep_best=1)
    return Config(data=data, model=model, gnp=GnpConfig(alpha=0.0), optim=optim, train=train, checkpoint=checkpoint)


def _clothes(label_noise: float, batch_size: int = 128) -> DataConfig:
    """4,000 images of Fashion-MNIST and as many held out, with equally many wrong labels, and no augmentation."""
    return DataConfig(
        name="fashion_mnist",
        batch_size=batch_size,
        eval_batch_size=500,
        num_examples=8000,
        holdout=0.5,
        label_noise=label_noise,
    )


def _sgd(learning_rate: float, l2_in_loss: float = 1e-4) -> OptimConfig:
    return OptimConfig(name="sgd", learning_rate=learning_rate, momentum=0.9, l2_in_loss=l2_in_loss, clip_norm=5.0)


def _noisy(label_noise: float) -> Callable[[int], Config]:
    return lambda num_steps: _config(_clothes(label_noise), ModelConfig("cnn_s"), _sgd(0.05), num_steps)


def _photographs(crop_area: float, learning_rate: float, l2_in_loss: float) -> Callable[[int], Config]:
    # Plain training chose these when others were given, so all methods start from them.
    data = DataConfig(name="grocery_store", batch_size=32, eval_batch_size=64, image_size=64, crop_area=crop_area)
    return lambda num_steps: _config(data, ModelConfig("cnn_s"), _sgd(learning_rate, l2_in_loss), num_steps)


def _noisy_photographs(num_steps: int) -> Config:
    # Long enough that plain training memorises wrong labels.
    data = DataConfig(
        name="grocery_store", batch_size=128, eval_batch_size=64, image_size=64, crop_area=1.0, label_noise=0.4
    )
    return _config(data, ModelConfig("cnn_s"), _sgd(0.1, 5e-4), num_steps)


def _transformer(num_steps: int) -> Config:
    model = ModelConfig("vit_mu", patch_size=7, depth=2, width=64, num_heads=4)
    # Plain training chose these when a quarter of the rate, and then a fifth of the decay, were given.
    optim = OptimConfig(
        name="adamw", learning_rate=4e-3, warmup_steps=num_steps // 10, weight_decay=1.25, clip_norm=5.0
    )
    return _config(_clothes(0.0, 64), model, optim, num_steps)


def _large_batches(num_steps: int) -> Config:
    # Batch statistics of 16 examples in all methods, so that only the perturbation differs.
    model = ModelConfig("cnn_s", num_bn_groups=GROUPED_BATCH // 16)
    return _config(_clothes(0.4, GROUPED_BATCH), model, _sgd(0.1), num_steps)


_CLOTHES = "4,000 images of Fashion-MNIST"
_GROCERIES = "Grocery Store photographs at 64 pixels"
TABLES = {
    "noise40": Table(f"{_CLOTHES}, 40 % wrong labels; a small CNN", 900, _noisy(0.4), METHODS),
    "noise60": Table(f"{_CLOTHES}, 60 % wrong labels; a small CNN", 900, _noisy(0.6), METHODS),
    "clean": Table(f"{_CLOTHES}, right labels; a small CNN", 900, _noisy(0.0), METHODS),
    "photographs": Table(f"{_GROCERIES}, random crops; a small CNN", 3000, _photographs(0.08, 0.4, 5e-4), METHODS),
    "photographs-squares": Table(
        f"{_GROCERIES}, largest squares; a small CNN", 3000, _photographs(1.0, 0.05, 1.25e-2), METHODS
    ),
    "photographs-noise40": Table(
        f"{_GROCERIES}, largest squares, 40 % wrong labels; a small CNN", 1800, _noisy_photographs, METHODS
    ),
    "transformer": Table(f"{_CLOTHES}, no augmentation; a small vision transformer", 1200, _transformer, GATED),
    "groups": Table(f"{_CLOTHES}, 40 % wrong labels, batches of 512; a small CNN", 240, _large_batches, GROUPED),
}
