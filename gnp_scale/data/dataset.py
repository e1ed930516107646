"""What a data set is: two splits of examples, and what is known of all of them.

N examples, B examples of a batch, H rows, W columns, C channels, D draws.
"""

import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np

UNREADABLE = -1
"""The label of an image that cannot be used, in a batch for evaluation."""
_NUM_COMPARED = 8
"""Examples of a split by which copies are compared; each is a request to a store."""

type Rows = dict[str, np.ndarray]


class Examples(Protocol):
    """The examples of a split, with random access."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        ...

    def __len__(self) -> int: ...

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """`image` (uint8 B x H x W x C) and `label` (int32 B) of the examples `chosen`.

        `draw` (uniform in [0, 1)) decides their random crops, if the images have one; evaluation has no draws.
        """
        ...


@dataclass(frozen=True)
class Split:
    """Examples in memory: uint8 images (N x H x W x C) and int32 labels (N)."""

    image: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.label)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        height, width, channels = self.image.shape[1:]
        return height, width, channels

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """The examples `chosen`; these images are not cropped here."""
        return {"image": self.image[chosen_B], "label": self.label[chosen_B]}


@dataclass(frozen=True)
class Dataset:
    """A data set, with the mean and standard deviation of each channel of its training images, scaled to [0, 1]."""

    name: str
    train: Examples
    test: Examples
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_answers: int = 0
    """Columns of `answers` in batches for evaluation: all right labels of an image. 0: there are no such batches."""
    class_names: tuple[str, ...] = ()
    """In the order of the labels; empty if the data set has none."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.image_shape

    def class_name(self, label: int) -> str:
        """The name of a class, in one line of text; its label if it has none."""
        name = self.class_names[label] if self.class_names else ""
        return " ".join(name.encode(errors="replace").decode().split()) or str(label)

    @property
    def sizes(self) -> dict[str, int]:
        """What the examples of each step and of each evaluation depend on."""
        return {
            "training images": len(self.train),
            "evaluated images": len(self.test),
            "classes": self.num_classes,
        }

    def fingerprints(self) -> dict[str, list[int | None]]:
        """A number for each of a few examples of both splits, by which copies of the data set can be compared."""
        return {"training images": _fingerprints(self.train), "evaluated images": _fingerprints(self.test)}


def evenly_spaced(num_examples: int, most: int) -> np.ndarray:
    """Numbers of at most `most` of the examples, with the first and the last one."""
    return np.unique(np.linspace(0, num_examples - 1, most).astype(np.int64))


def _fingerprints(examples: Examples) -> list[int | None]:
    """CRC-32 of label and pixels of the first example, the last one and some between; None if it cannot be used."""
    rows = examples.read(evenly_spaced(len(examples), _NUM_COMPARED), None)
    return [
        None if label == UNREADABLE else zlib.crc32(image_HxWxC.tobytes(), int(label))
        for image_HxWxC, label in zip(rows["image"], rows["label"], strict=True)
    ]
