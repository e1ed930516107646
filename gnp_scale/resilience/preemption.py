"""Signals that ask a run to stop: all processes save at a step that they agree on, or exit at once; exit code 75.

JAX is not imported here before the processes have found each other, so that signals are watched from the start.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from types import TracebackType
from typing import Any, NoReturn, Self

from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.grace import USED, VARIABLE, grace_s
from gnp_scale.resilience.signals import signals_to_take
from gnp_scale.run.streams import say, say_at_last

_NOTICE, _POSITIONS = "gnp_scale/stop/notice", "gnp_scale/stop/positions"
_HEAR_TIMEOUT_MS = 600_000
_LAST_WORDS_S, _LAST_LINE_S = 2.0, 0.5
"""The folder of the run may hang as well, and then standard error."""
_SECOND_INTERRUPT_S = 1.0
"""A launcher forwards a Ctrl-C that its processes also get from the terminal."""


EVALUATED = sys.maxsize
"""See `Position.batch`."""


@dataclass(frozen=True, order=True)
class Position:
    """The progress of a process: what it has passed."""

    attempt: int
    """The number of its training attempt: each rollback begins a new one; 0 before the process trains."""
    step: int
    """Its last step in the attempt."""
    batch: int = 0
    """0 if no evaluation follows that step. Otherwise 1 before it, one more before each of its batches, and `EVALUATED`
    after it.
    """


@dataclass(frozen=True)
class Plan:
    """What all processes do, and why."""

    stop_at: Position | None
    """Where to save and stop; None means to exit at once."""
    reason: str


def make_plan(positions: Sequence[Position], num_steps: int) -> Plan:
    """The same plan in every process: to stop after the first step, or inside the first evaluation, that no process has
    passed.
    """
    if any(position.attempt == 0 for position in positions):
        return Plan(None, "there is nothing new to save since the start")
    last = max(positions)
    if 0 < last.batch < EVALUATED:
        reason = f"saving after step {last.step} without waiting for its evaluation"
        return Plan(replace(last, batch=last.batch + 1), reason)
    if last.step >= num_steps:
        return Plan(last, "the last step is made, and is being saved")
    return Plan(Position(last.attempt, last.step + 1), f"saving after step {last.step + 1}")


class StopRequest:
    """Whether to stop, and after which step. Without `watch` it never stops.

    A signal to any process reaches all of them through JAX's coordination service. They exchange the last step that
    each has passed, and stop after the next one, which none has passed. They stop an evaluation before the next of its
    batches: it may be longer than the grace time. A failed save costs no more than no save, so it is always tried. If
    one process does not train yet, all exit at once, without the main thread: it may be inside a compiler for minutes.
    In every case this process exits before the grace time is over.
    """

    def __init__(self) -> None:
        self._grace_s = grace_s()
        self._deadline_s = float("inf")
        self._joined = threading.Event()
        self._client: Any = None
        self._rank, self._num_processes = 0, 1
        # Held from the time a process publishes its position until the plan is made, and while it exits: the main
        # thread passes no step meanwhile.
        self._lock = threading.Lock()
        # Never released: a process exits once, after one last line.
        self._leaving, self._telling = threading.Lock(), threading.Lock()
        self._position = Position(0, 0)
        self._stop_at: Position | None = None
        self._num_steps = 0
        self.close()

    def watch(self) -> Self:
        """Handles the signals from now on. Call it in the main thread, before other threads are started."""
        # A blocked signal waits for a thread that asks for it, whatever the main thread does and even if a library sets
        # handlers.
        signals = signals_to_take()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)
        _in_thread(self._await_signals, signals)
        return self

    def joined(self, client: Any, rank: int, num_processes: int) -> None:
        """Records that this process has found the others: a signal waits for that. A single process has no `client`."""
        self._client, self._rank, self._num_processes = client, rank, num_processes
        if client is not None:
            _in_thread(self._hear)
        self._joined.set()

    def begin(self, start: int, num_steps: int, leave: Callable[[], str]) -> None:
        """Records that the next of the `num_steps` steps is the one after `start`, at first or after a rollback.

        A stop that was planned before a rollback happens after the first step that follows it. `leave`, called from
        another thread, closes the records of the run and returns in words what is lost by an exit now.
        """
        with self._lock:
            self._position = Position(self._position.attempt + 1, start)
            self._num_steps, self._say_what_is_lost = num_steps, leave
            is_late = self._stop_at is not None and self._stop_at.attempt < self._position.attempt
            if is_late:
                self._stop_at = Position(self._position.attempt, start + 1)
        if is_late and self._rank == 0:
            say(f"after the rollback, saving after step {start + 1} instead")

    def close(self) -> None:
        """Records that there is nothing to close or to lose, before a run and after it: the process may go on."""
        self._say_what_is_lost: Callable[[], str] = lambda: "no step is lost"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends a run. After an error, this process may wait a while for the others."""
        self.close()
        if error is not None:
            self._say_what_is_lost = lambda: "the run had failed, and its steps since the newest checkpoint are lost"

    def reached(self, step: int, batch: int = 0) -> bool:
        """Whether to save and stop after `step`: the same answer in every process. Call it once per step in each of
        them, and with each `batch` of `Position` if an evaluation follows.
        """
        with self._lock:
            self._position = Position(self._position.attempt, step, batch)
            return self._stop_at is not None and self._position >= self._stop_at

    def is_planned(self) -> bool:
        """Whether all processes are to stop, here or later. `reached` says where."""
        return self._stop_at is not None

    def ask(self, reason: str) -> None:
        """Asks all processes to stop, as a signal does; returns when the plan is made or the others are told."""
        self._start_clock()
        self._joined.wait()
        if self._client is None:
            self._follow_plan(reason)
        else:
            text = f"{reason} in process {self._rank} on {socket.gethostname()}"
            self._client.key_value_set(_NOTICE, text, allow_overwrite=True)

    def _await_signals(self, signals: Sequence[signal.Signals]) -> None:
        name = signal.Signals(signal.sigwait(signals)).name
        first_s = time.monotonic()
        try:
            _in_thread(self.ask, name)
        except RuntimeError:
            return  # Python is shutting down and starts no more threads: there is nothing to stop.
        while signal.sigwait(signals) != signal.SIGINT or time.monotonic() - first_s < _SECOND_INTERRUPT_S:
            pass
        say_at_last("interrupted again: ending at once, without a save")
        os._exit(Exit.INTERRUPTED)

    def _hear(self) -> None:
        """Waits until any process, including this one, asks to stop."""
        notice = None
        while notice is None:
            try:
                notice = self._client.blocking_key_value_get(_NOTICE, _HEAR_TIMEOUT_MS)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return  # process 0 is gone, and the watchdog ends the run
        self._start_clock()
        self._follow_plan(notice)

    def _start_clock(self) -> None:
        if self._deadline_s == float("inf"):
            self._deadline_s = time.monotonic() + USED * self._grace_s
            _in_thread(self._expire)

    def _expire(self) -> None:
        time.sleep(USED * self._grace_s)
        reason = f"the grace time of {self._grace_s:g} s is over ({VARIABLE})"
        _in_thread(self._leave, reason)
        time.sleep(_LAST_WORDS_S)
        _in_thread(self._tell, reason, "the run folder does not answer, so what is lost is not known")
        time.sleep(_LAST_LINE_S)
        os._exit(Exit.PREEMPTED)

    def _follow_plan(self, notice: str) -> None:
        with self._lock:
            plan = self._agree()
            if plan.stop_at is None:
                self._leave(f"{notice}: {plan.reason}")
            self._stop_at = plan.stop_at
        if self._rank == 0:
            say(f"{notice}: {plan.reason}, within {USED * self._grace_s:g} s")

    def _agree(self) -> Plan:
        if self._client is None:
            return make_plan([self._position], self._num_steps)
        # Imports JAX, which a process with others has done before.
        from gnp_scale.run import consensus

        try:
            found = consensus.exchange(
                self._client, _POSITIONS, self._rank, self._num_processes, asdict(self._position), self._deadline_s
            )
        except Exception as error:
            return Plan(None, f"the other processes do not answer ({str(error).partition('\n')[0]})")
        return make_plan([Position(**position) for position in found], self._num_steps)

    def _leave(self, reason: str) -> NoReturn:
        self._leaving.acquire()
        if self._rank == 0:
            self._tell(reason, self._in_words())
            if self._num_processes > 1:
                # The others lose their coordinator, and with it their exit code, when this process ends.
                time.sleep(1)
        os._exit(Exit.PREEMPTED)

    def _tell(self, reason: str, loss: str) -> None:
        """Prints the last line of the run, once."""
        if self._rank == 0 and self._telling.acquire(blocking=False):
            say_at_last(f"{reason}; {loss}: start the same command again to go on")

    def _in_words(self) -> str:
        try:
            return self._say_what_is_lost()
        except Exception as error:
            # The store may not answer. The process must end all the same.
            return f"what is lost is not known ({type(error).__name__}: {str(error).partition('\n')[0]})"


def _in_thread(act: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=act, args=arguments, daemon=True).start()
