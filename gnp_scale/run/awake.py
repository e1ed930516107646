"""Time in which this process ran: while it is stopped (SIGSTOP, a frozen container), it is neither late nor silent."""

import threading
import time
from collections.abc import Callable

_STOPPED_TICKS = 5
"""A longer gap between two ticks is no delay by other work, but a stop."""


class AwakeClock:
    """Seconds for which this process ran, if a thread asks about every `tick_s` seconds; a stop counts as one tick.

    `on_stop` is called with the seconds of each stop by the thread that notices it.
    """

    def __init__(self, tick_s: float, on_stop: Callable[[float], object] = lambda seconds: None) -> None:
        self._tick_s, self._on_stop = tick_s, on_stop
        self._lock = threading.Lock()
        self._last_s, self._stopped_s = time.monotonic(), 0.0

    def now_s(self) -> float:
        """On a clock of its own, which runs on with each call."""
        with self._lock:
            now_s = time.monotonic()
            gap_s, self._last_s = now_s - self._last_s, now_s
            stopped_s = gap_s - self._tick_s if gap_s > _STOPPED_TICKS * self._tick_s else 0.0
            self._stopped_s += stopped_s
            if stopped_s:
                self._on_stop(stopped_s)
            return now_s - self._stopped_s


def wait(event: threading.Event, seconds: float) -> bool:
    """Waits until `event` is set, for as long as this process has run for `seconds`; whether it was set."""
    tick_s = min(1.0, seconds / 10)
    clock = AwakeClock(tick_s)
    end_s = clock.now_s() + seconds
    while not event.wait(tick_s):
        if clock.now_s() >= end_s:
            return False
    return True
