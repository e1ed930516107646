"""Keeps what was used last: open files, shards and row groups."""

import resource
import threading
from collections.abc import Callable
from concurrent.futures import Future

_MOST_FILES = 1 << 14
"""Files that a process may have, if the system sets no lower limit."""


def most_open_files() -> int:
    """Files of a split that may stay open: a quarter of those that the process may have.

    It first raises the limit of the process, which is often 1,024, as far as the system lets it, or to 16,384.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most // 4


class Recent[T]:
    """The `most` values that threads have asked for last; `make` opens one that is not among them.

    Several values may be opened at a time, each by one thread, for which others that ask for it wait. A value that is
    dropped while a thread uses it ends when that thread is done with it.
    """

    def __init__(self, most: int, make: Callable[[int], T]) -> None:
        self._most, self._make = most, make
        self._values: dict[int, Future[T]] = {}
        self._lock = threading.Lock()

    def get(self, number: int) -> T:
        """The value of this number; raises what `make` raises, which is called again by the next to ask."""
        with self._lock:
            known = self._values.pop(number, None)
            # The most recently used value is the last.
            value = self._values[number] = Future() if known is None else known
            if len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        if known is None:
            self._open(number, value)
        return value.result()

    def _open(self, number: int, value: Future[T]) -> None:
        try:
            value.set_result(self._make(number))
        except BaseException as error:
            with self._lock:
                if self._values.get(number) is value:
                    del self._values[number]
            value.set_exception(error)
