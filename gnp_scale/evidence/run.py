"""`gnp-scale bench generalization`: all rows of a table, each trained by a process, and the report."""

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gnp_scale.config import ConfigError
from gnp_scale.data import sources
from gnp_scale.evidence import report
from gnp_scale.evidence.claim import claimed
from gnp_scale.evidence.plan import Plan, Run, num_passes
from gnp_scale.evidence.row import Row
from gnp_scale.evidence.summary import Comparison, Summary
from gnp_scale.exit_codes import Exit, exit_code_of_all
from gnp_scale.run.streams import say
from gnp_scale.sweeps.queue import Queue, meaning

_COMMAND = (sys.executable, "-m", "gnp_scale.cli")
_LOOK_S = 5.0
"""Seconds between two counts of the finished runs."""


def rows_of(plan: Plan, folder: Path) -> dict[str, Row]:
    """The row of each method of the table.

    Raises:
        ConfigError: the configuration of a method is wrong.
    """
    return {name: Row(plan, name, config, folder) for name, config in plan.configs().items()}


def check_all(rows: Mapping[str, Row], forgotten: Collection[str] = ()) -> None:
    """Checks, before anything is trained, what would end all runs; runs of the methods `forgotten` may be any.

    Raises:
        ConfigError: the data are missing, or the folder holds a run of other settings.
    """
    for name in rows.keys() - set(forgotten):
        rows[name].is_finished()
    sources.load(next(iter(rows.values())).config.data)


def check_apart(names: Sequence[str], arguments: Sequence[str]) -> int:
    """Checks, in processes of their own, that the methods `names` can be trained: this one has no accelerator.

    Returns the first exit code that is not 0, after a line that says why.
    """
    for name in names:
        done = subprocess.run([*_COMMAND, *arguments, "--check", name], stdin=subprocess.DEVNULL, check=False)
        if done.returncode < 0:
            say(f"{name}: its check was {meaning(done.returncode)}")
            return Exit.FAILED
        if done.returncode != Exit.FINISHED:
            return done.returncode
    return Exit.FINISHED


def run_all(rows: Mapping[str, Row], names: Sequence[str], arguments: Sequence[str], num_jobs: int) -> int:
    """Trains what is not finished, and reports on the whole table; returns the exit code.

    Args:
        rows: of all methods of the table.
        names: of the methods that are trained now.
        arguments: of `gnp-scale`, for all of them; `--row NAME` is added for each.
        num_jobs: rows at a time.

    Raises:
        ConfigError: the folder cannot be written.
    """
    commands = {name: [*_COMMAND, *arguments, "--row", name] for name in names}
    folder, progress = rows[names[0]].folder, Progress([rows[name] for name in names])
    say(progress.line())
    queue = Queue(folder, commands, lambda name: rows[name].is_finished(), num_jobs, progress.poll)
    has_ended = queue.run()
    print(report_on(rows), end="")
    for name, code in queue.codes.items():
        if code != Exit.FINISHED:
            say(f"{name}: {meaning(code)}: {queue.error_of(name)}")
    if not has_ended:
        say("stopped: the same command goes on")
        return Exit.PREEMPTED
    return exit_code_of_all(queue.codes.values())


def report_on(rows: Mapping[str, Row]) -> str:
    """Writes the report on what there is; returns its table."""
    first = next(iter(rows.values()))
    return report.write(first.plan, Comparison(tuple(map(Summary.of, rows.values()))), first.folder)


def forget(rows: Sequence[Row]) -> None:
    """Removes all runs of the rows, or none.

    Raises:
        ConfigError: one of them is being trained, or cannot be removed.
    """
    with contextlib.ExitStack() as claims:
        for row in rows:
            claims.enter_context(claimed(row, wait_s=0))
        for folder in [row.folder / row.name for row in rows]:
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise ConfigError(f"{folder} cannot be removed ({error}): remove it by hand") from error


@dataclass
class _Count:
    """How much of a row is done, in passes over a batch."""

    done: float
    all: float
    num_runs: int


class Progress:
    """A line whenever runs have finished, with an estimate of the time that the others take."""

    def __init__(self, rows: Sequence[Row], clock: Callable[[], float] = time.monotonic) -> None:
        self._rows, self._clock = rows, clock
        self._passes = {row.name: num_passes(row.config) for row in rows}
        self._final: dict[str, list[Run]] = {}
        self._first, self._begin_s = self._count(), clock()
        self._last, self._looked_s = self._first, self._begin_s

    def poll(self) -> None:
        """Says the line, if it has changed."""
        if self._clock() - self._looked_s < _LOOK_S:
            return
        self._looked_s, now = self._clock(), self._count()
        if now.num_runs != self._last.num_runs:
            self._last = now
            say(self.line())

    def line(self) -> str:
        """How many runs are finished, and how long the others will take at the speed since the start."""
        now = self._last
        num_all = sum(self._num_runs(row) for row in self._rows)
        text = f"{now.num_runs} of {num_all} runs are finished"
        passes = now.done - self._first.done
        if passes <= 0 or now.num_runs == num_all:
            return text
        left_s = (now.all - now.done) * (self._clock() - self._begin_s) / passes
        return f"{text}, about {_words(left_s)} left"

    def _num_runs(self, row: Row) -> int:
        return len(row.plan.tuning(row.name)) + row.plan.num_seeds

    def _num_finished(self, row: Row) -> int:
        tuning = row.plan.tuning(row.name)
        num_tuning = row.num_finished(tuning)
        if num_tuning < len(tuning):
            return num_tuning
        # To choose a point takes the time of reading all outcomes.
        if row.name not in self._final:
            self._final[row.name] = row.final()
        return num_tuning + row.num_finished(self._final[row.name])

    def _count(self) -> _Count:
        count = _Count(0.0, 0.0, 0)
        for row in self._rows:
            num_finished = self._num_finished(row)
            count.num_runs += num_finished
            count.done += self._passes[row.name] * num_finished
            count.all += self._passes[row.name] * self._num_runs(row)
        return count


def _words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(1, minutes)} min"
