"""Files that survive kills, power cuts and full disks: replaced as a whole, or appended to record by record."""

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gnp_scale.checks import ConfigError
from gnp_scale.run.store import StorePath
from gnp_scale.run.streams import say

_SYNC_EVERY = 1000
"""Records; those that are certainly on the disk are dropped from memory."""
NEW_SUFFIX = ".new"
"""Of a file that is being written, and then replaces another."""
MAX_RECORDS = 100_000
"""Records that are kept while they cannot be written: about 100 MB of metrics. Beyond that the oldest are lost."""


def replace_file(path: Path | StorePath, data: bytes) -> None:
    """Makes `data` the content of `path`; after a kill, a power cut or an error it has either the old or the new
    content. Several processes may do so at once: one of them is the last. A kill may leave a file that ends in
    `NEW_SUFFIX` beside it.

    Raises: OSError: it cannot be written; the old content remains.
    """
    if isinstance(path, StorePath):
        path.write_bytes(data)
        return
    new = path.with_name(f"{path.name}.{secrets.token_hex(4)}{NEW_SUFFIX}")
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
        raise
    # The new content is safe. Some file systems cannot sync a folder, and do not need to.
    with contextlib.suppress(OSError):
        sync(path.parent)


def write_output(path: Path, data: bytes, option: str) -> None:
    """`replace_file` for a file that the user has named by `option`.

    Raises: ConfigError: it cannot be written.
    """
    try:
        replace_file(path, data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): choose another {option}") from error


def sha256(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def append_line(path: Path, line: bytes) -> None:
    """Adds a line, also if another process adds one at the same time; it first ends an incomplete line.

    Raises: OSError: the line is missing or incomplete.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        size = os.fstat(file).st_size
        was_cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
        data = b"\n" * was_cut + line + b"\n"
        while data:
            data = data[os.write(file, data) :]
    finally:
        os.close(file)


def try_lock(file: int) -> bool:
    """Locks an open file until it is closed, here and in all child processes; returns whether it is locked by now."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # Some network file systems have no locks, or none of folders (EBADF). There, only the scheduler ensures that a
        # run is started once.
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EBADF):
            raise
    return True


def wait_for_lock(file: int, wait_s: float = math.inf) -> bool:
    """Locks an open file, as `try_lock` does, when nobody else has locked it; returns whether it is locked by now."""
    deadline_s = time.monotonic() + wait_s
    while not try_lock(file):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.1)
    return True


def read_rows(path: Path | StorePath, tail_bytes: int | None = None) -> Iterator[dict[str, Any]]:
    """The JSON objects in the lines of a file; incomplete or damaged lines are ignored.

    Raises: OSError: the file exists, but cannot be read.
    """
    try:
        data = path.read_bytes(tail_bytes) if isinstance(path, StorePath) else _tail(path, tail_bytes)
    except FileNotFoundError:
        return
    for line in data.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict):
            yield row


def _tail(path: Path, num_bytes: int | None) -> bytes:
    with path.open("rb") as file:
        if num_bytes is not None:
            file.seek(max(0, file.seek(0, os.SEEK_END) - num_bytes))
        return file.read()


class Outage:
    """Reports once that a file cannot be written, and once that it can be written again."""

    def __init__(self, path: Path | StorePath, consequence: str) -> None:
        self._path, self._consequence = path, consequence
        self.reason: str | None = None

    def begin(self, error: OSError) -> None:
        """Reports that a write failed."""
        if self.reason is None:
            say(f"{self._path} cannot be written ({error.strerror or error}): {self._consequence}")
        self.reason = error.strerror or str(error)

    def end(self, what: str) -> None:
        """Reports that a write succeeded; `what` describes the file now."""
        if self.reason is not None:
            self.reason = None
            say(f"{self._path} can be written again: {what}")


class RecordFile:
    """Appends records to a file that nobody else writes; disk errors do not end the process.

    The first `start` bytes of the file stay, and the record `last`, if any, follows; the rest is cut off. Records that
    cannot be written now are kept, and written with the next one. Some file systems report lost data only at a sync, so
    all records since the last `sync` are kept.
    """

    def __init__(self, path: Path, start: int = 0, last: bytes = b"") -> None:
        self._path = path
        self._file: int | None = None
        self._records = [last] if last else []
        self._start = self._end = start
        """Offsets of the first record, and of the first record that is not yet written."""
        self._num_written = 0
        self._num_lost = 0
        self._outage = Outage(path, "what is new is kept in memory until then")
        self._write()

    def append(self, record: bytes) -> None:
        """Adds a record."""
        self._records.append(record)
        if len(self._records) > MAX_RECORDS:
            self._forget_first()
        self._write()
        if self._outage.reason is None and len(self._records) > _SYNC_EVERY:
            self.sync()

    def amend(self, record: bytes) -> None:
        """Replaces the last record."""
        if self._num_written == len(self._records):
            self._num_written -= 1
            self._end -= len(self._records[-1])
        self._records[-1] = record
        self._write()

    def sync(self) -> None:
        """Waits until all records are on the disk, unless it cannot accept them."""
        self._write()
        if self._outage.reason is not None or not self._records:
            return
        assert self._file is not None
        try:
            os.fsync(self._file)
        except OSError as error:
            self._num_written, self._end = 0, self._start
            self._fail(error)
        else:
            self._records = self._records[-1:]
            self._start = self._end - len(self._records[0])
            self._num_written = 1

    def close(self) -> None:
        """Writes what can be written, and reports lost records."""
        self.sync()
        self._write()
        num_lost = self._num_lost + len(self._records) - self._num_written
        if num_lost:
            say(f"{num_lost} records of {self._path} are lost ({self._outage.reason})")
        self._close_file()

    def _write(self) -> None:
        try:
            file = self._opened()
            for record in self._records[self._num_written :]:
                _write_whole(file, record, self._end)
                self._end += len(record)
                self._num_written += 1
            os.ftruncate(file, self._end)
        except OSError as error:
            self._fail(error)
        else:
            self._outage.end(f"{self._num_lost} records are lost" if self._num_lost else "nothing is lost")
            self._num_lost = 0

    def _opened(self) -> int:
        if self._file is not None:
            return self._file
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        if size < self._end:
            # Somebody has replaced or shortened the file: leave no gap before the next record.
            self._start = min(size, self._start)
            self._end, self._num_written = self._start, 0
        return self._file

    def _fail(self, error: OSError) -> None:
        self._outage.begin(error)
        # A stale handle of a network file system stays stale: the next attempt opens the file again.
        self._close_file()

    def _forget_first(self) -> None:
        first = self._records.pop(0)
        if self._num_written:
            self._num_written -= 1
            self._start += len(first)
        else:
            self._num_lost += 1

    def _close_file(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = None


def _write_whole(file: int, data: bytes, offset: int) -> None:
    while data:
        num_written = os.pwrite(file, data, offset)
        data, offset = data[num_written:], offset + num_written
