"""Time in which this process ran: a stopped process (SIGSTOP, a frozen container) is neither late nor silent."""

import threading
import time
from collections.abc import Callable

_STOPPED_TICKS = 5
"""A longer gap between two ticks is a stop, not a delay by other work."""


def boot_s() -> float:
    """Seconds on a clock that is never set, and that runs while this process or the machine is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class AwakeClock:
    """Seconds for which this process ran, if a thread calls it about every `tick_s` seconds; a stop counts as one tick.

    The thread that notices a stop calls `on_stop` with its seconds.
    """

    def __init__(self, tick_s: float, on_stop: Callable[[float], object] = lambda seconds: None) -> None:
        self._tick_s, self._on_stop = tick_s, on_stop
        self._lock = threading.Lock()
        self._last_s, self._stopped_s = time.monotonic(), 0.0

    def now_s(self) -> float:
        """The time of this clock, which advances at each call."""
        with self._lock:
            now_s = time.monotonic()
            gap_s, self._last_s = now_s - self._last_s, now_s
            stopped_s = gap_s - self._tick_s if gap_s > _STOPPED_TICKS * self._tick_s else 0.0
            self._stopped_s += stopped_s
            if stopped_s:
                self._on_stop(stopped_s)
            return now_s - self._stopped_s


def wait(event: threading.Event, seconds: float) -> bool:
    """Waits until `event` is set, or until this process has run for `seconds`; returns whether it was set."""
    tick_s = min(1.0, seconds / 10)
    clock = AwakeClock(tick_s)
    end_s = clock.now_s() + seconds
    while not event.wait(tick_s):
        if clock.now_s() >= end_s:
            return False
    return True
