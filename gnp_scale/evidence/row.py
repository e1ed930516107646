"""The protocol for one method: tune on validation images, choose, and train with the chosen point on fresh seeds.

All runs of a method are trained in one process, one after another. A process for each run would import JAX and
register its devices each time. The methods have a process each, of the queue of sweeps, so that one that is killed ends
no other, and several may run at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gnp_scale.config import Config
from gnp_scale.evidence import outcome
from gnp_scale.evidence.methods import Point
from gnp_scale.evidence.outcome import OUTCOME_FILE, Outcome
from gnp_scale.evidence.plan import Plan, Run, config_of, folder_of
from gnp_scale.exit_codes import Exit, exit_code, exit_code_of_all
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.history import read_history
from gnp_scale.run.streams import one_line, say

type Train = Callable[[Run, Config, Path], Outcome | None]
"""Trains a run in a folder, and keeps its outcome there; None if it was stopped."""
type Outcomes = dict[Run, Outcome]


@dataclass(frozen=True)
class Row:
    """A method in the benchmark in `folder`."""

    plan: Plan
    name: str
    config: Config
    """Before it is tuned."""
    folder: Path

    def finished(self, runs: Sequence[Run]) -> Outcomes:
        """The outcomes of those runs that are finished.

        Raises:
            ConfigError: a folder holds a run of another configuration.
        """
        found = {run: outcome.read(folder_of(self.folder, run), config_of(run, self.config)) for run in runs}
        return {run: result for run, result in found.items() if result is not None}

    def chosen(self) -> Point | None:
        """The point that tuning chooses; None until all runs that tune are finished, or if all have diverged."""
        runs = self.plan.tuning(self.name)
        results = self.finished(runs)
        return best_point(results) if len(results) == len(runs) else None

    def final(self) -> list[Run]:
        """The runs at the chosen point; none as long as there is none."""
        point = self.chosen()
        return [] if point is None else self.plan.final(self.name, point)

    def is_finished(self) -> bool:
        """Whether all runs have an outcome; no point is left to train at if all runs that tune have diverged."""
        runs = self.plan.tuning(self.name)
        return len(self.finished(runs)) == len(runs) and len(self.finished(self.final())) == len(self.final())

    def num_finished(self, runs: Sequence[Run]) -> int:
        """How many of `runs` are finished, by the names of their files alone."""
        return sum((folder_of(self.folder, run) / OUTCOME_FILE).exists() for run in runs)

    def run(self, train: Train) -> Exit:
        """Makes all runs that are not finished; a failure is named, and ends no other run.

        All processes that train together call it.
        """
        code = self._all(self.plan.tuning(self.name), train)
        if code != Exit.FINISHED:
            return code
        found = broadcast(self.chosen())
        if found is None:
            say(f"{self.name}: no point is chosen")
            return Exit.FINISHED
        point = tuple((option, value) for option, value in found)
        say(f"{self.name}: {words(point)} is chosen")
        return self._all(self.plan.final(self.name, point), train)

    def _all(self, runs: Sequence[Run], train: Train) -> Exit:
        codes = []
        for run in self._left(runs):
            try:
                if train(run, config_of(run, self.config), folder_of(self.folder, run)) is None:
                    return Exit.PREEMPTED
            except Exception as error:
                # Whatever it is, the other runs may be free of it.
                codes.append(exit_code(error))
                say(f"{self.name}, {run.name}: failed: {type(error).__name__}: {one_line(error)}")
        return exit_code_of_all(codes)

    def _left(self, runs: Sequence[Run]) -> list[Run]:
        """Those that are not finished, in their order, the same in every process."""
        done = self.finished(runs)
        left = [number for number, run in enumerate(runs) if run not in done]
        # A file that the main process has just written may reach the others later.
        return [runs[number] for number in broadcast(sorted(left, key=lambda number: self._num_bad_ends(runs[number])))]

    def _num_bad_ends(self, run: Run) -> int:
        """How often the run failed or its process died: it comes last then, and does not keep the others waiting."""
        starts = read_history(folder_of(self.folder, run)).starts
        return sum(start.exit not in (Exit.FINISHED, Exit.PREEMPTED) for start in starts)


def words(point: Point) -> str:
    """A point as text, such as "r 0.1, learning_rate 0.05"."""
    return ", ".join(f"{option.partition('.')[2]} {value:g}" for option, value in point)


def mean_validation(results: Mapping[Run, Outcome]) -> dict[Point, float]:
    """By point, the mean over the seeds of the best accuracy on validation; a run that diverged counts as 0."""
    found = {run.point: [] for run in results}
    for run, result in results.items():
        found[run.point].append(0.0 if result.has_diverged else result.best)
    return {point: float(np.mean(accuracies)) for point, accuracies in found.items()}


def best_point(results: Mapping[Run, Outcome]) -> Point | None:
    """The point with the highest mean accuracy on validation, of equal ones the smallest; None if all have diverged."""
    if all(result.has_diverged for result in results.values()):
        return None
    means = mean_validation(results)
    return max(sorted(means), key=lambda point: means[point])
