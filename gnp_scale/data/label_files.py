"""Files with all right answers of each evaluated image, such as ReaL's for ImageNet (arXiv 2006.07159).

B examples, R columns: the largest number of right answers.
"""

import json
import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gnp_scale.config import ConfigError, check


@dataclass(frozen=True)
class LabelFile:
    """The right answers of each image, by its name, or by the number at the end of its name less 1."""

    path: Path
    by_name: Mapping[str, Sequence[int]] | None
    """By each form of a name that only one entry has."""
    by_number: Sequence[Sequence[int]] | None
    num_answers: int
    """R."""
    image_of: dict[str | int, str] = field(default_factory=dict)
    """The image for which an entry was used."""

    def labels(self, name: str) -> np.ndarray:
        """The right answers of an image (int32 R), with -1 in the other columns; all -1 if it has none.

        Raises:
            ConfigError: the file says nothing about the image, or has one entry for this image and another one.
        """
        entry, found = self._entry(name)
        other = self.image_of.setdefault(entry, name)
        check(
            other == name,
            f"{self.path} has one entry for the images {other} and {name}: make it an object with their names, with "
            "folders",
        )
        row_R = np.full(self.num_answers, -1, np.int32)
        row_R[: len(found)] = found
        return row_R

    def _entry(self, name: str) -> tuple[str | int, Sequence[int]]:
        by_name = self.by_name or {}
        for form in _forms(name):
            if form in by_name:
                return form, by_name[form]
        digits = re.search(r"\d+$", _forms(name)[-1])
        if self.by_number is not None and digits is not None and 0 < int(digits[0]) <= len(self.by_number):
            number = int(digits[0]) - 1
            return number, self.by_number[number]
        raise ConfigError(f"{self.path} has no labels for the image {name}: give the file of this data set")


def read_label_file(path: Path, num_classes: int) -> LabelFile:
    """Reads JSON: a list with the list of right answers of each image, as ReaL's, or an object from names to them.

    In the latter, an answer may stand alone. Names may lack folders and endings, where that leaves them different. An
    answer that is repeated counts once.

    Raises:
        ConfigError: it cannot be read, or has another form.
    """
    try:
        stored = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"data.eval_labels {path} cannot be read: {error}") from error
    is_named = isinstance(stored, dict)
    found = [row if isinstance(row, list) else [row] for row in stored.values()] if is_named else stored
    rows = _rows(path, found, num_classes)
    num_answers = max(map(len, rows), default=0)
    check(num_answers > 0, f"data.eval_labels {path} has no right answer: give the file of this data set")
    if is_named:
        return LabelFile(path, _by_form(dict(zip(stored, rows, strict=True))), None, num_answers)
    return LabelFile(path, None, rows, num_answers)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    repeated = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if repeated:
        raise ValueError(f"it names {repeated[0]} more than once")
    return dict(pairs)


def _by_form[Row](rows: Mapping[str, Row]) -> dict[str, Row]:
    """The rows by all forms of their names, without the forms that several have."""
    rows_of = defaultdict(list)
    for name, row in rows.items():
        for form in set(_forms(name)):
            rows_of[form].append(row)
    return {form: found[0] for form, found in rows_of.items() if len(found) == 1}


def _forms(name: str) -> tuple[str, ...]:
    """The name; without its ending; without its folders too; and up to its first dot."""
    last = name.rpartition("/")[2]
    return name, posixpath.splitext(name)[0], posixpath.splitext(last)[0], last.partition(".")[0]


def _rows(path: Path, found: Any, num_classes: int) -> list[list[int]]:
    """The different answers of each image, in order."""
    for row in found if isinstance(found, list) else [found]:
        is_row = isinstance(row, list) and all(type(label) is int and 0 <= label < num_classes for label in row)
        check(is_row, f"data.eval_labels {path} has {row!r:.80}: a list of labels below {num_classes} is due")
    return [sorted(set(row)) for row in found]
