"""Parquet files of Hugging Face: a column of encoded images (`image.bytes`) and one of labels.

A Parquet file is read by row groups, often of 100 images: to read single images costs as much. So this form is for
`gnp-scale data prepare` and for small sets.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gnp_scale.config import ConfigError
from gnp_scale.data.containers.recent import Recent
from gnp_scale.data.containers.record import Contents, Ids, Record, split_name
from gnp_scale.data.formats import DamagedFileError

_MOST_GROUPS = 8
"""Row groups that are kept in memory for the next reads."""


class ParquetSplit:
    """The rows of some files, in the order of their names."""

    def __init__(self, paths: Sequence[Path], image: str, label: str, num_classes: int) -> None:
        self._paths, self._image, self._label, self._num_classes = paths, image, label, num_classes
        self._groups = [(path, group) for path in paths for group in range(_opened(path).num_row_groups)]
        lengths = [_opened(path).metadata.row_group(group).num_rows for path, group in self._groups]
        self._start_G = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._tables = Recent(_MOST_GROUPS, self._read_group)

    def __len__(self) -> int:
        return int(self._start_G[-1])

    def read(self, ids: Ids) -> list[Record]:
        """The records `ids`."""
        return [self._record(int(number)) for number in ids]

    def labels(self) -> np.ndarray:
        """The labels of all records; images are not read."""
        return np.concatenate([_column(path, self._label) for path in self._paths])

    def _record(self, number: int) -> Record:
        group = int(np.searchsorted(self._start_G, number, side="right")) - 1
        row = number - int(self._start_G[group])
        path, _ = self._groups[group]
        name = f"row {number} of {path.parent.name}/{path.name.partition('-')[0]}"
        table = self._tables.get(group)
        if isinstance(table, Exception):
            return Record(b"", -1, name, f"its row group is damaged ({table})")
        image, label = table[self._image][row].as_py(), table[self._label][row].as_py()
        data = image.get("bytes") if isinstance(image, dict) else image
        if not data or label is None:
            return Record(b"", -1, name, "its row has no image or no label")
        if not 0 <= label < self._num_classes:
            return Record(b"", -1, name, f"its label {label} is not one of {self._num_classes} classes")
        return Record(data, label, name)

    def _read_group(self, group: int) -> Any:
        """The rows of a group, or the error with which it cannot be read."""
        path, number = self._groups[group]
        try:
            return _opened(path).read_row_group(number, columns=[self._image, self._label])
        except OSError as error:
            return error


def open_parquet(folder: Path) -> Contents | None:
    """The data set in the files `SPLIT-*.parquet` of `folder` or its folder `data`; None if there are none.

    Raises:
        ConfigError: PyArrow is not installed, or there is no column of images, or none of labels that are numbers.
        DamagedFileError: a file cannot be read.
    """
    paths = sorted(folder.glob("[!.]*.parquet")) or sorted(folder.glob("data/[!.]*.parquet"))
    if not paths:
        return None
    image, label, class_names = _columns(paths)
    by_split: dict[str, list[Path]] = {}
    for path in paths:
        by_split.setdefault(split_name(path.stem.partition("-")[0]), []).append(path)
    splits = {name: ParquetSplit(files, image, label, len(class_names)) for name, files in by_split.items()}
    return Contents("parquet", class_names, {name: split for name, split in splits.items() if len(split)})


def _opened(path: Path) -> Any:
    try:
        import pyarrow as pa
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError(f"{path} needs PyArrow: run pip install 'gnp-scale[parquet]'") from error
    try:
        return ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DamagedFileError(f"{path} is not a whole Parquet file: {error}") from error


def _columns(paths: Sequence[Path]) -> tuple[str, str, tuple[str, ...]]:
    """Columns of the image and the label, and the names of the classes, from what Hugging Face writes into the file."""
    stored = (_opened(paths[0]).schema_arrow.metadata or {}).get(b"huggingface", b"{}")
    try:
        features = json.loads(stored).get("info", {}).get("features", {})
        image = next((name for name, feature in features.items() if feature.get("_type") == "Image"), "image")
        label = next((name for name, feature in features.items() if feature.get("_type") == "ClassLabel"), "label")
        names = features.get(label, {}).get("names")
    except (ValueError, AttributeError) as error:
        raise DamagedFileError(f"{paths[0]} is not a whole Parquet file: it has features of another form") from error
    for path in paths:
        _check_columns(path, image, label)
    if names is None:
        highest = max(int(_column(path, label).max(initial=0)) for path in paths)
        names = [str(number) for number in range(highest + 1)]
    return image, label, tuple(names)


def _check_columns(path: Path, image: str, label: str) -> None:
    from pyarrow import types

    schema = _opened(path).schema_arrow
    if not {image, label} <= set(schema.names):
        raise ConfigError(f"{path} has the columns {', '.join(schema.names)}: it needs {image} and {label}")
    kind = schema.field(label).type
    if not (types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)):
        raise ConfigError(f"{path} has labels of the type {kind} in the column {label}: give whole numbers from 0 on")


def _column(path: Path, label: str) -> np.ndarray:
    """A column of labels, -1 where there is none."""
    column = _opened(path).read(columns=[label])[label]
    return column.fill_null(-1).to_numpy().astype(np.int64)
