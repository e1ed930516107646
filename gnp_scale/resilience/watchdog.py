"""Ends a run that hangs: processes report their stages, and if one is late, it is named and all exit."""

import contextlib
import faulthandler
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import jax
from jax._src import distributed

from gnp_scale.exit_codes import Exit, exit_code
from gnp_scale.resilience import lifeline
from gnp_scale.resilience.reports import Report, find_late, find_silent
from gnp_scale.run import processes
from gnp_scale.run.awake import AwakeClock
from gnp_scale.run.budgets import VARIABLE, budgets_s
from gnp_scale.run.layout import STACKS_FILE
from gnp_scale.run.processes import FAILURE, Failure
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.streams import say, say_at_last

_REPORTS, _MAIN = "gnp_scale/watchdog/reports/", FAILURE.removesuffix("failure")
_STDERR = 2
_GRACE_S = 3.0
"""How long a process may take to end by itself after another one has failed."""
_LAST_WORDS_S = 10.0


class Watchdog:
    """While it is entered, ends this process if the run hangs, with `Exit.HUNG`, or fails, with that exit code.

    Every process reports to process 0, which compares with `budgets_s()`; the others detect the silence of process 0.
    Both happen in threads, because the main one may be stuck. A process that exits with an error tells the others. Time
    in which this process was stopped does not count as silence of the others, and belongs to no stage.

    All stacks of a hung process go to standard error, and to `stacks_dir` unless that is None.
    """

    def __init__(self, stages: Stages, stacks_dir: Path | None) -> None:
        self._stages, self._budgets = stages, budgets_s()
        self.stacks_dir = stacks_dir
        self._silence_s = self._budgets["silence"]
        self._poll_s = min(2.0, self._silence_s / 20)
        self._clock = AwakeClock(self._poll_s, on_stop=self._skip)
        state = distributed.global_state
        self._client, self._rank, self._num_processes = state.client, state.process_id, state.num_processes
        self._own_key = f"{_MAIN}report" if self._rank == 0 else f"{_REPORTS}{self._rank}"
        self._host = socket.gethostname()
        # Process 0 receives reports from all, the others from process 0. Before its first report, a process is in
        # START.
        ranks = range(self._num_processes) if self._rank == 0 else (0,)
        self._reports = {n: Report(n, "an unknown host", Stage.START, 0, 0.0, 0, 0, self._clock.now_s()) for n in ranks}
        self._heard: Failure | None = None
        self._own: Failure | None = None
        self._is_ending = False
        self.on_end: Callable[[Exit], object] = lambda code: None
        """Called before it ends the process; set it when there is a record to close."""
        self._left = threading.Event()
        acts = [self._watch] if self._client is None else [self._watch, self._exchange]
        self._threads = [threading.Thread(target=act, daemon=True) for act in acts]

    def __enter__(self) -> Self:
        faulthandler.register(lifeline.STACKS_SIGNAL, _STDERR)
        command = [sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid()), str(2 * self._silence_s)]
        self._lifeline = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        assert self._lifeline.stdin is not None
        self._beat = self._lifeline.stdin.fileno()
        self._entered_s = time.perf_counter()
        os.set_blocking(self._beat, False)
        self._stages.before_move = self._clock.now_s
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None and _is_of_runtime(error):
            self._await_failure(error)
        if self._is_ending:
            self._threads[0].join()
        if error is not None:
            summary = f"{type(error).__name__}: {error}".partition("\n")[0]
            where = f"process {self._rank} on {self._host} failed at step {self._stages.now.step}"
            self._own = Failure(exit_code(error), f"{where}: {summary}")
        self._left.set()
        self._stages.before_move = lambda: None
        for thread in self._threads:
            thread.join(_GRACE_S)
        self._lifeline.kill()
        self._lifeline.communicate()

    def stop_this(self, reason: str) -> None:
        """Ends this process, and with it the others, because a restart would not help; called from any thread."""
        self._heard = Failure(Exit.WRONG_CONFIG, reason)

    def _await_failure(self, error: BaseException | None) -> None:
        """The death of another process may cause such an error: then the watchdog thread ends this one meanwhile."""
        wait_s = self._silence_s + 3 * self._poll_s
        say(f"{str(error).partition('\n')[0]}; waiting {wait_s:.0f} s to see whether another process is dead")
        self._left.wait(wait_s)

    def _skip(self, seconds: float) -> None:
        self._stages.skip(seconds)
        if seconds > self._silence_s:
            say(f"process {self._rank} was stopped for {seconds:.0f} s, which does not count")

    def _report(self, beat: int) -> Report:
        now_s, now = self._clock.now_s(), self._stages.now
        # A process may do other things for hours before it trains: a notebook, or a run of tests.
        in_stage_s = time.perf_counter() - max(now.since_s, self._entered_s)
        return Report(self._rank, self._host, now.stage, now.step, in_stage_s, now.number, beat, now_s)

    def _watch(self) -> None:
        while not self._left.wait(self._poll_s):
            self._clock.now_s()
            with contextlib.suppress(OSError):
                os.write(self._beat, b".")
            if self._heard is not None and not self._left.wait(_GRACE_S):
                self._end(self._heard)
            reason = self._judge()
            if reason is not None:
                self._end(Failure(Exit.HUNG, reason))

    def _judge(self) -> str | None:
        now_s = self._clock.now_s()
        others = [report for report in self._reports.values() if report.rank != self._rank]
        silent = find_silent(others, now_s, self._budgets)
        if silent is not None or self._rank != 0:
            return silent
        return find_late([*others, self._report(0)], now_s, self._budgets)

    def _exchange(self) -> None:
        """Sends and receives reports until this process exits; a call blocks as long as process 0 is stopped."""
        beat = 0
        while not self._left.wait(self._poll_s):
            beat += 1
            # No answer counts as the silence of process 0.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._tell_and_hear(beat)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._say_goodbye()

    def _tell_and_hear(self, beat: int) -> None:
        assert self._client is not None
        self._client.key_value_set(self._own_key, self._report(beat).encode(), allow_overwrite=True)
        texts = dict(self._client.key_value_dir_get(_MAIN))
        failure = texts.pop(FAILURE, None)
        if failure is not None:
            self._heard = Failure.decode(failure)
        if self._rank == 0:
            texts |= dict(self._client.key_value_dir_get(_REPORTS))
        now_s = self._clock.now_s()
        heard = {report.rank: report for report in (Report.decode(text, now_s) for text in texts.values())}
        # A process that has reported before and is no longer listed has exited.
        known = {rank: report for rank, report in self._reports.items() if report.beat == 0 or rank in heard}
        new = {rank: report for rank, report in heard.items() if rank not in known or report.beat > known[rank].beat}
        self._reports = known | new

    def _say_goodbye(self) -> None:
        assert self._client is not None
        self._client.key_value_delete(self._own_key)
        if self._own is not None:
            self._own.publish()

    def _end(self, failure: Failure) -> NoReturn:
        self._is_ending = True
        is_hung = failure.code == Exit.HUNG
        advice = f"; {VARIABLE} changes what is allowed" if is_hung else ""
        say_at_last(f"{failure.reason}: ending with exit code {failure.code}{advice}")
        # A hung file system must not keep a hung process alive.
        last_words = threading.Thread(target=self._leave_word, args=(failure, is_hung), daemon=True)
        last_words.start()
        if self._rank == 0 and self._client is not None:
            failure.publish()
        last_words.join(_LAST_WORDS_S)
        if self._rank == 0 or self._heard is not None:
            processes.leave(failure.code)
        # There is no answer if process 0 is silent.
        os._exit(failure.code)

    def _leave_word(self, failure: Failure, is_hung: bool) -> None:
        if is_hung:
            faulthandler.dump_traceback(_STDERR)
        try:
            if is_hung and self.stacks_dir is not None:
                self._write_stacks(self.stacks_dir, failure.reason)
        finally:
            self.on_end(Exit(failure.code))

    def _write_stacks(self, folder: Path, reason: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / STACKS_FILE.format(rank=self._rank)).open("a") as file:
            print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {reason}", file=file, flush=True)
            faulthandler.dump_traceback(file)


def _is_of_runtime(error: BaseException | None) -> bool:
    """Whether it is an error of a device or a collective.

    JAX raises one that arrives with a value as a ValueError with a status, such as `UNKNOWN: Gloo all-reduce failed`.
    """
    is_status = isinstance(error, ValueError) and re.match("[A-Z_]+: ", str(error)) is not None
    return isinstance(error, jax.errors.JaxRuntimeError) or is_status
