"""Standard output and standard error may end, fill up or block: a run continues without them.

A command prints its results to standard output, and messages during its work to standard error.
"""

import contextlib
import errno
import io
import os
import select
import stat
import sys
from collections.abc import Callable
from typing import TextIO

PROGRAM = "gnp-scale"
"""Lines of `say` begin with this name."""

before_last_words: Callable[[], object] | None = None
"""Ends what is drawn on standard error, such as a bar; None if nothing is."""
_MOST_CHARACTERS = 600
"""Of an error that is told whole. Those of JAX and of this project have fewer, those of stores may have thousands."""
_PATIENCE_S = 1.0
"""How long a write waits for the reader of standard error, before lines are dropped."""


def say(message: str) -> None:
    """Prints one line on standard error, after the name of the program; never raises."""
    # In an unprotected process, standard error may be closed (ValueError) or missing.
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{PROGRAM}: {message}\n")
            sys.stderr.flush()


def say_at_last(message: str) -> None:
    """`say`, in a process that exits now, in whatever thread and whatever the other threads do."""
    if before_last_words is not None:
        before_last_words()
    say(message)


def one_line(error: Exception) -> str:
    """An error in one line of characters that can be printed, without what JAX adds about tracebacks; of a very long
    one the beginning and the end.
    """
    words = " ".join(str(error).partition("\n---")[0].split())
    text = "".join(letter if letter.isprintable() else "?" for letter in words) or type(error).__name__
    return f"{text[:80]} ... {text[-120:]}" if len(text) > _MOST_CHARACTERS else text


def protect() -> None:
    """Prevents later writes to the standard streams from raising, and writes to standard error from blocking for long.

    Call it at the start of a process. Replaced streams are not changed.
    """
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            _open_null(fd, name)
    if sys.__stdout__ is sys.stdout:
        sys.stdout = _text(_Results(1), sys.stdout.encoding)
    if sys.__stderr__ is sys.stderr:
        _unblock(2)
        sys.stderr = _text(_Messages(2), sys.stderr.encoding)


def lost_results() -> str | None:
    """Why standard output is incomplete, in one line; None if it is complete, or if its reader closed it."""
    error = _error_of_results()
    if error is None or error.errno == errno.EPIPE:
        return None
    return f"standard output cannot be written ({error.strerror})"


def has_no_reader() -> bool:
    """Whether further results would be lost."""
    return _error_of_results() is not None


def _error_of_results() -> OSError | None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.error if isinstance(raw, _Results) else None


class _Stream(io.RawIOBase):
    """A file descriptor; `error` is the last one of a write to it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)


class _Results(_Stream):
    """Writes nothing more after an error: results with a gap are worse than incomplete results."""

    def write(self, data: bytes, /) -> int:  # pyrefly: ignore
        if self.error is None:
            try:
                return os.write(self._fd, data)
            except OSError as error:
                self.error = error
        return len(data)


class _Messages(_Stream):
    """Drops what cannot be written now, and marks the gap."""

    def write(self, data: bytes, /) -> int:  # pyrefly: ignore
        try:
            if self.error is not None:
                self._write(f"\ngnp-scale: lines are missing here ({self.error.strerror})\n".encode())
                self.error = None
            return self._write(data)
        except OSError as error:
            self.error = error
            return len(data)

    def _write(self, data: bytes) -> int:
        patience_s = _PATIENCE_S if self.error is None else 0.0
        if not select.select([], [self._fd], [], patience_s)[1]:
            raise BlockingIOError(errno.EAGAIN, "nobody reads them")
        # A pipe that is ready accepts this many bytes at once.
        return os.write(self._fd, data[: select.PIPE_BUF])


def _text(raw: _Stream, encoding: str) -> TextIO:
    by_line = raw.fileno() == 2 or raw.isatty()
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=by_line)


def _open_null(fd: int, name: str) -> None:
    """Opens /dev/null: Python has no stream for a closed descriptor, and the next opened file would get its number."""
    null = os.open(os.devnull, os.O_RDWR)
    if null != fd:
        os.dup2(null, fd)
        os.close(null)
    setattr(sys, name, open(fd, "r" if fd == 0 else "w", closefd=False))  # noqa: SIM115


def _unblock(fd: int) -> None:
    """Opens the terminal or pipe behind `fd` again, so that it is non-blocking only in this process.

    After that, writes by libraries do not block either. A socket, or a terminal of another user, cannot be opened and
    does not change.
    """
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        with contextlib.suppress(OSError):
            own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.dup2(own, fd)
            os.close(own)
