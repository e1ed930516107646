"""What tests of recipes compare: the options of a configuration that differ from their defaults."""

from pathlib import Path

from gnp_scale import recipe
from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

CONFIGS = Path(__file__).parent.parent / "configs"
IMAGENET, TRAINED_99 = 1_281_167, 1_268_355

DEFAULTS = {
    "data": DataConfig(),
    "model": ModelConfig(),
    "gnp": GnpConfig(),
    "optim": OptimConfig(),
    "train": TrainConfig(),
}
HOW = {"data.eval_batch_size", "data.prefetch_steps", "train.log_every_steps", "train.eval_every_steps"}
HOW |= {"model.dtype", "model.scan_layers", "model.remat", "train.gradient_dtype"}
"""Options that change how a run proceeds, not its experiment."""


def options(config: Config) -> dict[str, object]:
    """The options of `config` that differ from their defaults."""
    return {
        f"{section}.{name}": value
        for section, defaults in DEFAULTS.items()
        for name, value in vars(getattr(config, section)).items()
        if value != getattr(defaults, name) and f"{section}.{name}" not in HOW
    }


def steps(epochs: int, batch_size: int, num_examples: int = IMAGENET) -> dict[str, object]:
    return {"data.batch_size": batch_size, "train.num_steps": epochs * num_examples // batch_size}


CROPPED = {"data.name": "imagenet", "data.flip": True}
PLAIN = {"gnp.alpha": 0.0}
SMOOTH = {"train.label_smoothing": 0.1}
HOLDOUT = {"data.holdout": 0.01}
MIX = {"data.mixup": 0.8, "data.cutmix": 1.0}
RAND_M9 = {"data.policy": "randaugment", "data.randaugment_magnitude": 27, **MIX}
ERASE = {"data.random_erasing": 0.25, "data.random_erasing_mode": "pixel"}


def recipes(file: str) -> dict[str, dict[str, object]]:
    """The options of each recipe of a file of configs/."""
    return {name: options(make()) for name, make in recipe.functions(CONFIGS / f"{file}.py").items()}
