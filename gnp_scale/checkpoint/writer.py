"""Writes checkpoints during training, and keeps a copy of the state for retries."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gnp_scale.checkpoint.host_copy import copy_to_host
from gnp_scale.checkpoint.metadata import Metadata
from gnp_scale.checkpoint.problems import Problem, agree
from gnp_scale.checkpoint.store import Store, Write
from gnp_scale.checks import ConfigError, PassingError
from gnp_scale.run import consensus
from gnp_scale.run.messages import announce
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.streams import one_line

FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 60.0
"""The wait before the next attempt: it doubles after each failure, up to the longest."""
_POLL_S = 0.05


@dataclass(frozen=True)
class _Job:
    step: int
    state: Any
    metadata: Metadata


class Writer:
    """Writes one state at a time; all processes call the same methods in the same order.

    The state is copied to host memory and kept there until it is committed: training may reuse the original buffers,
    and a failed attempt loses nothing. An attempt that fails in one process has failed in all.
    """

    def __init__(
        self, store: Store, num_attempts: int, on_commit: Callable[[int], None], probe: Callable[[], None]
    ) -> None:
        self._store, self._num_attempts, self._on_commit, self._probe = store, num_attempts, on_commit, probe
        self._job: _Job | None = None
        self._write: Write | None = None
        self._num_failures = 0
        self._retry_time = 0.0

    @property
    def step(self) -> int | None:
        """The step to be committed; None if there is none."""
        return None if self._job is None else self._job.step

    def start(self, step: int, state: Any, metadata: Metadata) -> None:
        """Takes a state to write. Waits for the current write; this state replaces one whose write has failed.

        It is written at once, or when the next attempt is due.

        Raises:
            ConfigError: the last allowed attempt in a row has failed.
            PassingError: the same, because a store does not answer.
        """
        while self._write is not None:
            self._wait()
        if self._job is not None:
            announce(f"the checkpoint of step {step} comes in place of that of step {self._job.step}, not yet written")
        is_first_attempt = self._job is None
        self._job = _Job(step, copy_to_host(state), metadata)
        if is_first_attempt:
            self._attempt()

    def poll(self) -> None:
        """Continues without waiting.

        Raises:
            ConfigError: the last allowed attempt in a row has failed.
            PassingError: the same, because a store does not answer.
        """
        if self._job is None:
            return
        if self._write is None:
            if consensus.broadcast(time.monotonic() >= self._retry_time):
                self._attempt()
            return
        is_over, error = self._write.is_over, self._write.error
        problem, are_over = agree(error, is_over)
        if problem is not None:
            self._fail(self._job.step, problem)
        elif all(are_over):
            self._commit(self._job.step)

    def finish(self) -> None:
        """Waits until the state is committed.

        Raises:
            ConfigError: the last allowed attempt in a row has failed.
            PassingError: the same, because a store does not answer.
        """
        # The process may not have the time to wait for the next attempt.
        self._retry_time = 0.0
        while self._job is not None:
            self._wait()

    def leave(self) -> None:
        """Waits for the current attempt, and reports its failure: for a process that ends with another error."""
        if self._write is not None:
            self._write.join()
            if self._write.error is not None:
                announce(f"the last checkpoint was not written: {one_line(self._write.error)}")

    def _wait(self) -> None:
        self.poll()
        if self._job is not None:
            time.sleep(_POLL_S)

    def _attempt(self) -> None:
        assert self._job is not None
        error, is_committed = None, False
        try:
            # In a folder that was made again under its old name, all else of the run would be missing.
            if is_main_process():
                self._probe()
            self._store.prepare(self._job.step)
            is_committed = is_main_process() and self._job.step in self._store.steps()
        except OSError as failure:
            error = failure
        problem, are_committed = agree(error, is_committed)
        if problem is not None:
            self._fail(self._job.step, problem)
        elif are_committed[0]:
            # The previous attempt was committed, and failed in some process only afterwards.
            self._commit(self._job.step)
        else:
            self._write = self._store.write(self._job.step, self._job.state, self._job.metadata)

    def _moved(self) -> str | None:
        """The error of the main process if the run folder was moved."""
        try:
            if is_main_process():
                self._probe()
        except FileNotFoundError as error:
            return str(error)
        return None

    def _commit(self, step: int) -> None:
        self._job = self._write = None
        self._num_failures = 0
        self._on_commit(step)

    def _fail(self, step: int, problem: Problem) -> None:
        self._write = None
        self._num_failures += 1
        failed = f"the checkpoint of step {step} could not be written ({problem.text})"
        if self._num_failures >= self._num_attempts:
            with contextlib.suppress(OSError):
                self._store.clear_unfinished(step)
            if moved := consensus.broadcast(self._moved()):
                raise ConfigError(moved)
            last = f"attempt {self._num_failures} of {self._num_attempts}"
            if problem.may_pass:
                raise PassingError(
                    f"{failed}, {last}: start the same command again when its store answers, to resume from the "
                    "previous checkpoint"
                )
            raise ConfigError(
                f"{failed}, {last}: make {self._store.folder} writable, with free space, and start the same command "
                "again to resume from the previous checkpoint"
            )
        wait_s = min(FIRST_WAIT_S * 2 ** (self._num_failures - 1), LONGEST_WAIT_S)
        self._retry_time = time.monotonic() + wait_s
        announce(f"{failed}: attempt {self._num_failures + 1} of {self._num_attempts} in {wait_s:g} s")
