"""Keeps what was used last: open files, shards and row groups."""

import threading
from collections.abc import Callable


class Recent[T]:
    """The `most` values that threads have asked for last; `make` opens one that is not among them.

    A value that is dropped while a thread uses it ends when that thread is done with it.
    """

    def __init__(self, most: int, make: Callable[[int], T]) -> None:
        self._most, self._make = most, make
        self._values: dict[int, T] = {}
        self._lock = threading.Lock()

    def get(self, number: int) -> T:
        """The value of this number; raises what `make` raises."""
        with self._lock:
            value = self._values.pop(number) if number in self._values else self._make(number)
            # The most recently used value is the last.
            self._values[number] = value
            if len(self._values) > self._most:
                del self._values[next(iter(self._values))]
        return value
