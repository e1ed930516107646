"""Files with all right answers of each evaluated image, such as ReaL's for ImageNet (arXiv 2006.07159).

B examples, R columns: the largest number of right answers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gnp_scale.config import ConfigError


@dataclass(frozen=True)
class LabelFile:
    """The right answers of each image, by its name without folders and ending, or by the number at its end less 1."""

    path: Path
    by_name: Mapping[str, Sequence[int]] | None
    by_number: Sequence[Sequence[int]] | None
    num_answers: int
    """R."""

    def labels(self, name: str) -> np.ndarray:
        """The right answers of an image (int32 R), with -1 in the other columns; all -1 if it has none.

        Raises:
            ConfigError: the file says nothing about the image.
        """
        stem = _stem(name)
        digits = re.search(r"\d+$", stem)
        if self.by_name is not None and stem in self.by_name:
            found = self.by_name[stem]
        elif self.by_number is not None and digits is not None and 0 < int(digits[0]) <= len(self.by_number):
            found = self.by_number[int(digits[0]) - 1]
        else:
            raise ConfigError(f"{self.path} has no labels for the image {name}: give the file of this data set")
        row_R = np.full(self.num_answers, -1, np.int32)
        row_R[: len(found)] = found
        return row_R


def read_label_file(path: Path, num_classes: int) -> LabelFile:
    """Reads JSON: a list with the list of right answers of each image, as ReaL's, or an object from names to them.

    In the latter, an answer may stand alone.

    Raises:
        ConfigError: it cannot be read, or has another form.
    """
    try:
        stored = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.eval_labels {path} cannot be read: {error}") from error
    if isinstance(stored, dict):
        by_name = {_stem(name): [found] if isinstance(found, int) else found for name, found in stored.items()}
        return LabelFile(path, by_name, None, _width(path, list(by_name.values()), num_classes))
    return LabelFile(path, None, stored, _width(path, stored, num_classes))


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0]


def _width(path: Path, rows: Any, num_classes: int) -> int:
    for row in rows if isinstance(rows, list) else [rows]:
        is_row = isinstance(row, list) and all(isinstance(label, int) and 0 <= label < num_classes for label in row)
        if not is_row:
            raise ConfigError(f"data.eval_labels {path} has {row!r:.80}: a list of labels below {num_classes} is due")
    return max((len(row) for row in rows), default=0) or 1
