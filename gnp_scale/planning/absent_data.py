"""A data set of which a plan needs the sizes alone, so that its images may be elsewhere."""

from dataclasses import dataclass

import numpy as np

from gnp_scale.config import ConfigError, DataConfig, check
from gnp_scale.data import sources
from gnp_scale.data.dataset import Dataset, Rows
from gnp_scale.data.small_sets import READERS

_PUBLISHED = {
    "imagenet": (224, 3, 1000, 1_281_167),
    "imagenet21k": (224, 3, 21_841, 14_197_122),
    "cifar10": (32, 3, 10, 50_000),
    "cifar100": (32, 3, 100, 50_000),
    "fashion_mnist": (28, 1, 10, 60_000),
    "grocery_store": (224, 3, 81, 2_640),
}
"""Image size, channels, classes and training images; `data.image_size` decides the size of images that are decoded."""


@dataclass(frozen=True)
class _Absent:
    """Examples that cannot be read."""

    image_shape: tuple[int, int, int]
    num_images: int

    def __len__(self) -> int:
        return self.num_images

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """Raises NotImplementedError: there are no images."""
        raise NotImplementedError("a plan reads no images")


def are_decoded(config: DataConfig) -> bool:
    """Whether the images are files that hosts decode during training."""
    return config.name not in READERS


def load(config: DataConfig, num_classes: int | None) -> Dataset:
    """The data set of `config` if its files are here, otherwise one of its published sizes without images.

    Args:
        config: Section `data`.
        num_classes: Instead of the published number of classes.

    Raises:
        ConfigError: the files are missing, and the sizes are not known.
    """
    try:
        dataset = sources.load(config)
        check(
            num_classes in (None, dataset.num_classes),
            f"--num-classes is {num_classes}, but {config.name} is here and has {dataset.num_classes}: leave it out",
        )
        return dataset
    except sources.MissingDataError as error:
        if config.name not in _PUBLISHED and num_classes is None:
            raise ConfigError(f"{error}; or plan without the images: add --num-classes N") from error
    size, num_channels, published, num_images = _PUBLISHED.get(config.name, (config.image_size, 3, 0, 1))
    if are_decoded(config):
        size = config.image_size
    images = _Absent((size, size, num_channels), num_images)
    channel = (0.5,) * num_channels
    return Dataset(config.name, images, images, num_classes or published, channel, channel)
