"""Records that are ranges of bytes of files: images in folders and in tar files, with a checksum of each.

A flipped bit in a JPEG decodes without an error, and neither tar files nor folders have checksums. So an index is made
once, with the CRC-32 of each record, and each read is compared with it.
"""

import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gnp_scale.data.containers.recent import Recent
from gnp_scale.data.containers.record import Contents, Ids, Record
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.run.files import replace_file

VERSION = 1
_KEYS = ("file", "offset", "num_bytes", "label", "name", "crc")
_MOST_OPEN = 256
"""Files that are kept open at once; a folder of images opens one for each read."""
_CHUNK = 64
"""Records whose checksums one call computes."""


class Entry(NamedTuple):
    """Where a record lies: `file` is relative to the folder of the data set, `name` is for people."""

    file: str
    offset: int
    num_bytes: int
    label: int
    name: str


class _File:
    """An open file, which is closed when nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ByteRanges:
    """The records of a split in `files` of `folder`, by arrays with one entry for each record.

    With no `files`, each record is a whole file, with the name of the record.
    """

    def __init__(self, folder: Path, files: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        self._folder, self.files, self.arrays = folder, tuple(files), arrays
        self._open = Recent(_MOST_OPEN, lambda file: _File(folder / self.files[file]))

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def read(self, ids: Ids) -> list[Record]:
        """The records `ids`."""
        return [self._record(int(number)) for number in ids]

    def labels(self) -> np.ndarray:
        """The labels of all records."""
        return self.arrays["label"].astype(np.int64)

    def entry(self, number: int) -> Entry:
        """Where a record lies."""
        at = {name: array[number] for name, array in self.arrays.items()}
        name = at["name"].decode(errors="surrogateescape")
        file = self.files[at["file"]] if self.files else name
        return Entry(file, int(at["offset"]), int(at["num_bytes"]), int(at["label"]), name)

    def _record(self, number: int) -> Record:
        entry = self.entry(number)
        try:
            data = self.bytes_at(entry, int(self.arrays["file"][number]))
        except OSError as error:
            return Record(b"", entry.label, entry.name, f"it cannot be read ({error.strerror or error})")
        problem = "" if zlib.crc32(data) == self.arrays["crc"][number] else "its bytes are not those of the index"
        return Record(data, entry.label, entry.name, problem)

    def bytes_at(self, entry: Entry, file: int) -> bytes:
        """The bytes of an entry in the file of this number."""
        if not self.files:
            return (self._folder / entry.file).read_bytes()
        return os.pread(self._open.get(file).descriptor, entry.num_bytes, entry.offset)


def indexed(
    folder: Path, entries: Iterable[Entry], on_read: Callable[[int, int], None], num_threads: int
) -> ByteRanges:
    """The records of `entries` with their checksums, for which all bytes are read once.

    `on_read` gets a number of records and of their bytes, as they are read.

    Raises:
        OSError: a file cannot be read.
    """
    listed = list(entries)
    files = sorted({entry.file for entry in listed})
    is_folder = all(entry.file == entry.name for entry in listed)
    number_of = {file: number for number, file in enumerate(files)}
    arrays = {
        "file": np.array([0 if is_folder else number_of[entry.file] for entry in listed], np.int32),
        "offset": np.array([entry.offset for entry in listed], np.int64),
        "num_bytes": np.array([entry.num_bytes for entry in listed], np.int64),
        "label": np.array([entry.label for entry in listed], np.int32),
        "name": np.array([os.fsencode(entry.name) for entry in listed], np.bytes_),
        "crc": np.zeros(len(listed), np.uint32),
    }
    source = ByteRanges(folder, () if is_folder else files, arrays)

    def check(start: int) -> None:
        numbers = range(start, min(start + _CHUNK, len(listed)))
        for number in numbers:
            arrays["crc"][number] = zlib.crc32(source.bytes_at(listed[number], int(arrays["file"][number])))
        on_read(len(numbers), sum(listed[number].num_bytes for number in numbers))

    with ThreadPoolExecutor(num_threads) as pool:
        for future in [pool.submit(check, start) for start in range(0, len(listed), _CHUNK)]:
            future.result()
    return source


def save(path: Path, contents: Contents) -> None:
    """Writes the index of `contents`; after a kill it is absent or whole.

    Raises:
        OSError: it cannot be written.
    """
    splits = {name: split for name, split in contents.splits.items() if isinstance(split, ByteRanges)}
    header = {
        "version": VERSION,
        "form": contents.form,
        "class_names": contents.class_names,
        "splits": {name: split.files for name, split in splits.items()},
    }
    arrays: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for name, split in splits.items():
        arrays |= {f"{name}/{key}": array for key, array in split.arrays.items()}
    text = io.BytesIO()
    np.savez(text, **arrays)
    replace_file(path, text.getvalue())


def load(path: Path, folder: Path) -> Contents:
    """The data set in `folder`, by its index.

    Raises:
        DamagedFileError: the index cannot be read.
    """
    try:
        # Without pickles an index cannot contain code.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            splits = {
                name: ByteRanges(folder, files, {key: stored[f"{name}/{key}"] for key in _KEYS})
                for name, files in header["splits"].items()
            }
    except (OSError, ValueError, KeyError, zlib.error, EOFError, zipfile.BadZipFile) as error:
        raise DamagedFileError(f"{path} is not a whole index ({error}): remove it") from error
    return Contents(header["form"], tuple(header["class_names"]), splits)
