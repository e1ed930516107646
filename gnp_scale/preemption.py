"""Signals that ask a run to stop: all processes save at a step that they agree on, or leave at once; exit code 75.

JAX is not imported here before the processes have found each other, so that signals are watched from the start.
"""

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NoReturn, Protocol, Self

from gnp_scale.exit_codes import Exit
from gnp_scale.grace import USED, VARIABLE, Plan, Position, grace_s, make_plan

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

_NOTICE, _POSITIONS = "gnp_scale/stop/notice", "gnp_scale/stop/positions/"
_POLL_S = 0.05
_HEAR_TIMEOUT_MS = 600_000
_LAST_WORDS_S = 2.0
"""The folder of the run may hang as well."""
_SECOND_INTERRUPT_S = 1.0
"""A launcher passes on a Ctrl-C that its processes have got from the terminal as well."""


class Run(Protocol):
    """What a request to stop needs to know of the run; read from another thread than that of the run."""

    num_steps: int

    def needed_s(self, step: int) -> float:
        """Seconds until a save after `step`, the next one, is committed."""
        ...

    @property
    def is_writing(self) -> bool:
        """Whether an earlier save is not committed yet."""
        ...

    def leave(self) -> str:
        """Closes the records of the run; returns what leaving now loses, in words."""
        ...


class StopRequest:
    """Whether to stop, and after which step. One that watches no signals never stops.

    A signal to any process reaches all of them through JAX's coordination service. They exchange the last step that
    each has passed, and stop after the next one, which none has. Where one does not train yet, or a save would not fit
    into the grace time, all leave at once, without the main thread: it may be inside a compiler for minutes. A save
    under way is waited for. Whatever happens, this process has left when the grace time is over.
    """

    def __init__(self) -> None:
        self._grace_s = grace_s()
        self._deadline_s = float("inf")
        self._joined = threading.Event()
        self._client: Any = None
        self._rank, self._num_processes = 0, 1
        self._run: Run | None = None
        # Held from the moment a process has told its position until the plan is made, and while it leaves: the main
        # thread passes no step meanwhile.
        self._lock = threading.Lock()
        # Never given back: a process leaves once.
        self._leaving = threading.Lock()
        self._passed: int | None = None
        self._stop_at: int | None = None

    def watch(self) -> Self:
        """Takes the signals from here on. Call it in the main thread, before others are started."""
        # A blocked signal waits for a thread that asks for it, whatever the main thread does and whoever sets handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        _in_thread(self._await_signals)
        return self

    def joined(self, client: Any, rank: int, num_processes: int) -> None:
        """Tells that this process has found the others: a signal waits for that. Alone, it has no `client`."""
        self._client, self._rank, self._num_processes = client, rank, num_processes
        if client is not None:
            _in_thread(self._hear)
        self._joined.set()

    def begin(self, run: Run, start: int) -> None:
        """Tells that the next step will be that after `start`."""
        with self._lock:
            self._run, self._passed = run, start

    def reached(self, step: int) -> bool:
        """Whether to save and stop after `step`: the same answer in every process. Ask once a step in each of them."""
        with self._lock:
            if self._stop_at is None:
                self._passed = step
            return self._stop_at is not None and step >= self._stop_at

    def ask(self, reason: str) -> None:
        """Asks all processes to stop, as a signal does; returns when the plan is made or the others are told."""
        self._start_clock()
        self._joined.wait()
        if self._client is None:
            self._follow_plan(reason)
        else:
            text = f"{reason} in process {self._rank} on {socket.gethostname()}"
            self._client.key_value_set(_NOTICE, text, allow_overwrite=True)

    def _await_signals(self) -> None:
        name = signal.Signals(signal.sigwait(SIGNALS)).name
        first_s = time.monotonic()
        _in_thread(self.ask, name)
        while signal.sigwait(SIGNALS) != signal.SIGINT or time.monotonic() - first_s < _SECOND_INTERRUPT_S:
            pass
        _say("interrupted again: ending at once, without a save")
        os._exit(Exit.INTERRUPTED)

    def _hear(self) -> None:
        """Waits until any process, this one included, asks to stop."""
        notice = None
        while notice is None:
            try:
                notice = self._client.blocking_key_value_get(_NOTICE, _HEAR_TIMEOUT_MS)
            except Exception as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    return  # process 0 is gone, which is the watchdog's affair
        self._start_clock()
        self._follow_plan(notice)

    def _start_clock(self) -> None:
        if self._deadline_s == float("inf"):
            self._deadline_s = time.monotonic() + USED * self._grace_s
            _in_thread(self._expire)

    def _expire(self) -> None:
        time.sleep(USED * self._grace_s)
        _in_thread(self._leave, f"the grace time of {self._grace_s:g} s is over ({VARIABLE})")
        time.sleep(_LAST_WORDS_S)
        os._exit(Exit.PREEMPTED)

    def _follow_plan(self, notice: str) -> None:
        self._lock.acquire()
        plan = self._agree()
        if plan.stop_at is None:
            while self._run is not None and self._run.is_writing and time.monotonic() < self._deadline_s:
                time.sleep(_POLL_S)
            self._leave(f"{notice}: {plan.reason}")
        if self._rank == 0:
            _say(f"{notice}: {plan.reason}")
        self._stop_at = plan.stop_at
        self._lock.release()

    def _agree(self) -> Plan:
        left_s = max(0.0, self._deadline_s - time.monotonic())
        run, passed = self._run, self._passed
        num_steps, needed_s = (0, 0.0) if run is None or passed is None else (run.num_steps, run.needed_s(passed + 1))
        own = Position(passed, num_steps, needed_s, left_s)
        if self._client is None:
            return make_plan([own])
        try:
            self._client.key_value_set(f"{_POSITIONS}{self._rank}", json.dumps(asdict(own)))
            keys = [f"{_POSITIONS}{rank}" for rank in range(self._num_processes)]
            texts = [self._client.blocking_key_value_get(key, round(1000 * left_s)) for key in keys]
        except Exception as error:
            return Plan(None, f"the other processes do not answer ({str(error).partition('\n')[0]})")
        return make_plan([Position(**json.loads(text)) for text in texts])

    def _leave(self, reason: str) -> NoReturn:
        self._leaving.acquire()
        if self._rank == 0:
            lost = "no step is lost" if self._run is None else self._run.leave()
            _say(f"{reason}; {lost}: start the same command again to go on")
            if self._num_processes > 1:
                # The others lose their coordinator, and with it their exit code, when this process ends.
                time.sleep(1)
        os._exit(Exit.PREEMPTED)


def _in_thread(act: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=act, args=arguments, daemon=True).start()


def _say(message: str) -> None:
    print(f"gnp-scale: {message}", file=sys.stderr, flush=True)
