"""Signals that ask a run to stop: it saves at a step that all processes agree on, and exits."""

import os
import signal
from types import FrameType, TracebackType
from typing import Self

import jax
from jax.experimental import multihost_utils


class StopRequest:
    """Watches for SIGINT and SIGTERM while it is entered.

    In one process the handlers set a flag. In several, JAX's coordination service carries a SIGTERM of any process to
    all of them and has them agree on the step; a SIGINT is turned into a SIGTERM. A second SIGINT stops at once.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._several = jax.process_count() > 1

    def __enter__(self) -> Self:
        watched = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._previous = {number: signal.signal(number, self._handle) for number in watched}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def reached(self, step: int) -> bool:
        """Whether to stop after `step`: the same answer in every process. Call it once a step in each of them."""
        return multihost_utils.reached_preemption_sync_point(step) if self._several else self._signalled
