"""What all forms of a data set have in common: sources of records with random access, one for each split."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from gnp_scale.config import ConfigError

type Ids = Sequence[int] | np.ndarray
"""Numbers of records."""


class Record(NamedTuple):
    """An encoded image; `problem` says why `data` and `label` are not what was stored, and is empty otherwise."""

    data: bytes
    label: int
    name: str
    problem: str = ""

    def flaw(self) -> str:
        """Why it cannot be used, as far as that shows without decoding it; empty otherwise."""
        return self.problem or ("" if self.data else "it is empty")


class Source(Protocol):
    """The records of a split, by number."""

    def __len__(self) -> int: ...

    def read(self, ids: Ids) -> list[Record]:
        """The records `ids`; threads may call it at the same time.

        Raises:
            ConfigError: a container of many records is missing or no longer the same.
        """
        ...

    def labels(self) -> np.ndarray:
        """The labels of all records (int64), -1 for those that cannot be used. Some forms must read all records."""
        ...


@dataclass(frozen=True)
class Contents:
    """A data set: its form, the names of its classes in the order of their labels, and its splits by name."""

    form: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Source]

    def split(self, name: str, option: str) -> Source:
        """The split called `name`, which the user gave as `option`.

        Raises:
            ConfigError: there is no such split.
        """
        if name not in self.splits:
            raise ConfigError(f"{option} is {name!r}: the data set has {', '.join(self.splits)}; give one of them")
        return self.splits[name]


SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"}
"""Other names of a split, in files and folders."""


def split_name(name: str) -> str:
    """The name of a split that files call `name`."""
    return SPLIT_NAMES.get(name.lower(), name.lower())
