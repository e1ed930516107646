"""What a file of networks tells the registry."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Any

from gnp_scale.config import ModelConfig, check

_FOR_ALL = ("name", "dtype", "head_bias", "init_from", "init_allow")
"""The fields of `ModelConfig` that every network uses."""

type ImageShape = tuple[int, int, int]
"""Height, width and channels."""


def _no_check(config: ModelConfig, image_shape: ImageShape) -> None:
    """Any image and any values of the options fit."""


def check_patches(config: ModelConfig, image_shape: ImageShape) -> None:
    """Raises ConfigError unless the patches divide the image."""
    height, width, _ = image_shape
    patch = config.patch_size
    check(
        height % patch == 0 and width % patch == 0,
        f"model.patch_size is {patch}, which does not divide images of {height}x{width}: change it",
    )


@dataclass(frozen=True)
class Family:
    """Networks that are built by the same code."""

    names: Collection[str]
    network: Callable[..., Any]
    """Makes the module: `network(key, config, image_shape, num_classes)`, with `bn_group_size` if it has batch
    statistics."""
    options: tuple[str, ...]
    """The fields of `ModelConfig` that the networks use, besides those that all use."""
    check_shapes: Callable[[ModelConfig, ImageShape], None] = _no_check
    """Raises ConfigError if the options do not fit the image."""

    @property
    def has_batch_norm(self) -> bool:
        """Whether the networks have batch statistics."""
        return "num_bn_groups" in self.options

    def check_options(self, config: ModelConfig) -> None:
        """Raises ConfigError for an option that has no effect, so that no user expects one."""
        for field in fields(ModelConfig):
            value = getattr(config, field.name)
            check(
                value == field.default or field.name in (*_FOR_ALL, *self.options),
                f"model.{field.name} is {value}, which {config.name} does not use: leave it at {field.default}",
            )
