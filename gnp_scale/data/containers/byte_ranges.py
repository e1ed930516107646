"""Records that are ranges of bytes of files: images in folders and in tar files, with a checksum of each.

A flipped bit in a JPEG decodes without an error, and neither tar files nor folders have checksums. So an index is made
once, with the CRC-32 of each record, and each read is compared with it. The files may be objects of a store, where each
record is one request.
"""

import io
import json
import os
import weakref
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from gnp_scale.config import ConfigError
from gnp_scale.data.containers.entries import Entry, check_inside
from gnp_scale.data.containers.recent import Recent, most_open_files
from gnp_scale.data.containers.record import Contents, Ids, Record
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.run.files import replace_file
from gnp_scale.run.store import Folder, StorePath
from gnp_scale.run.store_requests import StoreError, may_pass, not_now

VERSION = 1
_KEYS = ("file", "offset", "num_bytes", "label", "name", "crc")
_DAMAGED = (OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, zlib.error, zipfile.BadZipFile)
"""Errors of an index that is cut, or has another form."""
_CHUNK = 64
"""Records whose checksums one call computes."""


class _File:
    """An open file, which is closed when nobody uses it any more."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        # Unlike `__del__`, this also works while Python ends.
        weakref.finalize(self, os.close, self.descriptor)


class _LocalFiles:
    """Bytes of `files` in a folder. With no `files`, each record is a whole file, which is opened for each read."""

    def __init__(self, folder: Path, files: Sequence[str]) -> None:
        self._folder, self._is_open = folder, bool(files)
        self._open = Recent(most_open_files(), lambda file: _File(folder / files[file]))

    def begin_read(self, entry: Entry, file: int) -> Callable[[], bytes]:
        """A function that reads the bytes of an entry, in the file of this number; it raises OSError."""
        if not self._is_open:
            return (self._folder / entry.file).read_bytes

        def read() -> bytes:
            # As long as it has a name here, it is not closed.
            opened = self._open.get(file)
            return os.pread(opened.descriptor, entry.num_bytes, entry.offset)

        return read


class _StoredFiles:
    """Bytes of the objects of a folder on a store."""

    def __init__(self, folder: StorePath) -> None:
        self._folder = folder

    def begin_read(self, entry: Entry, file: int) -> Callable[[], bytes]:
        """Asks for the bytes of an entry; the result waits for them.

        It raises FileNotFoundError if there is no such object, and ConfigError or StoreError if the store fails: then
        no other example may take the place of this one.
        """
        path = self._folder / entry.file
        wait = path.begin_read(entry.offset, entry.num_bytes)

        def read() -> bytes:
            try:
                return wait()
            except StoreError as error:
                raise unreadable(path, error) from error

        return read


def unreadable(path: Folder, error: StoreError) -> ConfigError | StoreError:
    """What to raise after `error`: a restart helps only if the store did not answer."""
    if may_pass(error):
        return not_now(path, error)
    return ConfigError(f"{path} cannot be read ({error}): check the bucket, and the credentials in the environment")


class ByteRanges:
    """The records of a split in `files` of `folder`, by arrays with one entry for each record.

    With no `files`, each record is a whole file, with the name of the record.
    """

    def __init__(self, folder: Folder, files: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        self.files, self.arrays = tuple(files), arrays
        self._bytes = _LocalFiles(folder, self.files) if isinstance(folder, Path) else _StoredFiles(folder)

    def __len__(self) -> int:
        return len(self.arrays["label"])

    def read(self, ids: Ids) -> list[Record]:
        """The records `ids`. A store is asked for all of them at the same time.

        Raises:
            ConfigError: the store refuses.
            StoreError: the store does not answer.
        """
        entries = [(int(number), self.entry(int(number))) for number in ids]
        waits = [self._bytes.begin_read(entry, int(self.arrays["file"][number])) for number, entry in entries]
        return [self._record(number, entry, wait) for (number, entry), wait in zip(entries, waits, strict=True)]

    def labels(self) -> np.ndarray:
        """The labels of all records."""
        return self.arrays["label"].astype(np.int64)

    def entry(self, number: int) -> Entry:
        """Where a record lies."""
        at = {name: array[number] for name, array in self.arrays.items()}
        name = at["name"].decode(errors="surrogateescape")
        file = self.files[at["file"]] if self.files else name
        return Entry(file, int(at["offset"]), int(at["num_bytes"]), int(at["label"]), name)

    def crc(self, number: int) -> int:
        """The CRC-32 of the bytes of a record, which are read. Raises: OSError."""
        return zlib.crc32(self._bytes.begin_read(self.entry(number), int(self.arrays["file"][number]))())

    def _record(self, number: int, entry: Entry, wait: Callable[[], bytes]) -> Record:
        try:
            data = wait()
        except StoreError:
            raise
        except OSError as error:
            return Record(b"", entry.label, entry.name, f"it cannot be read ({error.strerror or error})")
        problem = "" if zlib.crc32(data) == self.arrays["crc"][number] else "its bytes are not those of the index"
        return Record(data, entry.label, entry.name, problem)


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
            arrays["crc"][number] = source.crc(number)
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


def load(path: Folder, folder: Folder) -> Contents:
    """The data set in `folder`, by its index.

    Raises:
        DamagedFileError: the index cannot be read, or names files outside of the folder.
        StoreError: the store that has it does not answer.
    """
    try:
        # Without pickles an index cannot contain code.
        with io.BytesIO(path.read_bytes()) as file, np.load(file, allow_pickle=False) as stored:
            header = json.loads(stored["header"].tobytes())
            splits = {
                name: ByteRanges(folder, files, {key: stored[f"{name}/{key}"] for key in _KEYS})
                for name, files in header["splits"].items()
            }
            contents = Contents(header["form"], tuple(header["class_names"]), splits)
    except StoreError:
        raise
    except _DAMAGED as error:
        raise DamagedFileError(f"{path} is not a whole index ({error}): remove it") from error
    for split in splits.values():
        check_inside(path, split.files or _odd_names(split.arrays["name"]))
    return contents


def _odd_names(name_N: np.ndarray) -> list[str]:
    """Those that may lead elsewhere; to look at each of a million names alone takes a second."""
    odd_N = name_N[(np.strings.find(name_N, b"..") >= 0) | np.strings.startswith(name_N, b"/")]
    return [os.fsdecode(name) for name in odd_N.tolist()]
