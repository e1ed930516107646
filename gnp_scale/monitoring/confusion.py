"""What an evaluation guesses: which classes it takes for which, and about which images it is most wrong.

N images of a split, K classes, R rows of a picture.
"""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import jax
import numpy as np

type NameOf = Callable[[int], str]
"""The name of a class, by its label."""

NO_GUESS = -1
"""The guess for an image whose logits are not numbers: none of them is the largest."""
_NUM_CONFUSIONS, _NUM_CLASSES = 20, 10
"""Rows of the two tables."""


class Confusion(NamedTuple):
    """A class and the wrong class that is guessed for some of its images."""

    label: int
    guess: int
    count: int
    """Number of these images."""
    num_images: int
    """Number of all images of the class."""


@dataclass(frozen=True)
class Guesses:
    """The first guess for each image of a split, in the order of the split.

    It takes 16 bytes for an image, whatever the number of classes.
    """

    label: np.ndarray
    """int32 N; `UNREADABLE` (-1) for an image that does not count."""
    guess: np.ndarray
    """int32 N; the class of the largest logit, or `NO_GUESS`."""
    loss: np.ndarray
    """float32 N; the loss `train.loss`, in nats."""
    confidence: np.ndarray
    """float32 N; the probability of the guess."""
    num_classes: int

    @classmethod
    def of(cls, batches: Sequence[Mapping[str, jax.Array]], num_images: int, num_classes: int) -> Self:
        """The first `num_images` of some batches of `label`, `guess`, `loss` and `confidence`, each replicated."""
        on_host = jax.device_get(list(batches))

        def column(name: str) -> np.ndarray:
            return np.concatenate([batch[name] for batch in on_host])[:num_images]

        return cls(column("label"), column("guess"), column("loss"), column("confidence"), num_classes)

    def counts(self, per_row: int = 1) -> np.ndarray:
        """How many images of each class (row) have each class as their first guess (column); int64 R x R.

        A row or column stands for `per_row` consecutive classes. R is K / `per_row`, rounded up.
        """
        counts_N = (self.label >= 0) & (self.guess != NO_GUESS)
        num_rows = -(-self.num_classes // per_row)
        place = (self.label[counts_N] // per_row).astype(np.int64) * num_rows + self.guess[counts_N] // per_row
        return np.bincount(place, minlength=num_rows**2).reshape(num_rows, num_rows)

    def per_class(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of images of each class whose first guess is right, and of all its images; int64 K."""
        counted_N, right_N = self.label >= 0, self.label == self.guess
        right_K, all_K = (
            np.bincount(self.label[chosen_N], minlength=self.num_classes)
            for chosen_N in (counted_N & right_N, counted_N)
        )
        return right_K, all_K

    def confusions(self, most: int) -> list[Confusion]:
        """The `most` frequent confusions; of equally frequent ones, those of lower label, then guess, come first."""
        _, all_K = self.per_class()
        pair_N = self.label.astype(np.int64) * self.num_classes + self.guess
        pair_P, count_P = np.unique(pair_N[self._is_wrong()], return_counts=True)
        order = np.argsort(-count_P, kind="stable")[:most]
        pairs = zip(pair_P[order].tolist(), count_P[order].tolist(), strict=True)
        places = ((divmod(pair, self.num_classes), count) for pair, count in pairs)
        return [Confusion(label, guess, count, int(all_K[label])) for (label, guess), count in places]

    def worst(self, most: int) -> np.ndarray:
        """The places in the split of the `most` wrongly guessed images of largest loss; of equal losses, the first.

        A loss that is not a number counts as infinite.
        """
        place = np.flatnonzero(self._is_wrong())
        loss = np.nan_to_num(self.loss[place], nan=np.inf, posinf=np.inf)
        return place[np.argsort(-loss, kind="stable")[:most]]

    def _is_wrong(self) -> np.ndarray:
        return (self.label >= 0) & (self.guess != NO_GUESS) & (self.label != self.guess)


def line(guesses: Guesses, name_of: NameOf, most: int) -> str:
    """The most frequent confusions, for people."""
    found = [
        f"{name_of(each.label)} -> {name_of(each.guess)} ({each.count} of {each.num_images} images)"
        for each in guesses.confusions(most)
    ]
    return f"most frequent confusions: {', '.join(found)}" if found else "no class is taken for another"


def tables(guesses: Guesses, name_of: NameOf) -> str:
    """The most frequent confusions, and the classes with the lowest accuracy, as Markdown."""
    right_K, all_K = guesses.per_class()
    lines = [f"The first guess is right for {right_K.sum()} of {all_K.sum()} images.", ""]
    lines += _table(
        ("true class", "guess", "images", "of the class"),
        [
            (
                _plain(name_of(each.label)),
                _plain(name_of(each.guess)),
                each.count,
                f"{each.count / each.num_images:.1%}",
            )
            for each in guesses.confusions(_NUM_CONFUSIONS)
        ],
    )
    shown = np.flatnonzero(all_K)
    accuracy = right_K[shown] / all_K[shown]
    lowest = np.argsort(accuracy, kind="stable")[:_NUM_CLASSES]
    lines += _table(
        ("class", "images", "right", "accuracy"),
        [
            (_plain(name_of(label)), all_K[label], right_K[label], f"{right_K[label] / all_K[label]:.1%}")
            for label in shown[lowest].tolist()
        ],
    )
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return [*(f"| {' | '.join(map(str, row))} |" for row in cells), ""]


def _plain(text: str) -> str:
    """`text` without what Markdown or HTML would make of it."""
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|])", r"\\\1", html.escape(text, quote=False))
