"""The signals that ask a command to stop."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

from gnp_scale.exit_codes import Exit
from gnp_scale.run.streams import say

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)
"""The signals of schedulers, shells and terminals before they kill."""


@contextlib.contextmanager
def ends_at_a_signal() -> Iterator[None]:
    """A signal ends this process inside the block, which has nothing to save. Use it in the main thread."""
    old = {number: signal.signal(number, _end) for number in signals_to_take()}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _end(number: int, frame: Any) -> NoReturn:
    say(f"{signal.Signals(number).name}: there is nothing to save: start the same command again to go on")
    raise SystemExit(Exit.PREEMPTED)


def take_back() -> None:
    """Handles `SIGNALS` again as Python knows them, in the main thread; for commands that load libtpu.

    When that library is loaded, it sets SIGTERM to print its stack, and SIGHUP to do nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        handler = signal.getsignal(number)
        if handler is not None:
            signal.signal(number, handler)


def signals_to_take() -> list[signal.Signals]:
    """`SIGNALS`, without SIGHUP if this process was started with SIGHUP ignored, as nohup does."""
    ignores_hangup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in SIGNALS if number != signal.SIGHUP or not ignores_hangup]
