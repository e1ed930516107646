"""Ctrl-C ends a command that has nothing to save, whatever its process is doing."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.signals import SIGNALS
from gnp_scale.run.streams import say_at_last

_PATIENCE_S = 2.0
"""How long a command may take to end by itself, for example to remove the part of a file that it was writing."""
_IMPORTS = "<frozen importlib"
"""How the names of Python's own files begin whose code imports modules."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block, SIGINT raises KeyboardInterrupt, and the process ends with the block, or soon.

    Python drops that error in callbacks, and libraries may turn it into another one. While they are imported they may
    abort, and compiled code delays it until it returns. A command that handles SIGINT by itself is left alone.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    has_come, is_over = threading.Event(), threading.Event()

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        if has_come.is_set():
            _end_at_once()
        has_come.set()
        if _is_importing(frame):
            _end()
        raise KeyboardInterrupt

    with _handled_by(interrupt, is_over):
        try:
            yield
        except BaseException:
            if has_come.is_set():
                is_over.set()
                sys.stdout.flush()
                # While the error is alive: what it has left unfinished would complain when it is deleted.
                _end()
            raise


@contextlib.contextmanager
def _handled_by(interrupt: Callable[[int, FrameType | None], Any], is_over: threading.Event) -> Iterator[None]:
    """`interrupt` handles SIGINT inside the block, beside a thread for the case that this does not help."""
    reader, writer = socket.socketpair()
    has_blocked = threading.Event()
    writer.setblocking(False)

    def watch() -> None:
        # A run waits for these signals; in a thread that does not block them they would end the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        has_blocked.set()
        while number := reader.recv(1):
            is_ours = number[0] == signal.SIGINT and signal.getsignal(signal.SIGINT) is interrupt
            if is_ours and not is_over.wait(_PATIENCE_S):
                _end()

    def dropped(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt:
            _end()
        old_hook(lost)

    old_hook, old_fd = sys.unraisablehook, signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    sys.unraisablehook = dropped
    signal.signal(signal.SIGINT, interrupt)
    watcher = threading.Thread(target=watch, name="interrupts", daemon=True)
    watcher.start()
    has_blocked.wait()
    try:
        yield
    finally:
        is_over.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.set_wakeup_fd(old_fd)
        sys.unraisablehook = old_hook
        writer.close()
        watcher.join()
        reader.close()


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORTS):
            return True
        frame = frame.f_back
    return False


def _end() -> NoReturn:
    """Ends this process, and lets those that train with it know."""
    say_at_last("interrupted")
    # It may be among the modules that are being imported.
    leave = getattr(sys.modules.get("gnp_scale.run.processes"), "leave", None)
    if leave is not None:
        leave(Exit.INTERRUPTED, "interrupted")
    os._exit(Exit.INTERRUPTED)


def _end_at_once() -> NoReturn:
    say_at_last("interrupted again: ending at once")
    os._exit(Exit.INTERRUPTED)
