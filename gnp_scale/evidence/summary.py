"""What the methods have reached: means over the seeds, and differences to the baselines, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from gnp_scale.evidence.methods import Method, Point
from gnp_scale.evidence.outcome import Outcome
from gnp_scale.evidence.plan import num_passes
from gnp_scale.evidence.row import Row, mean_validation

_NUM_RESAMPLES = 10_000
_LEVEL = 0.95
CHEAP = 1.3
"""Compute, in units of plain training, up to which a method is called cheap."""


class Interval(NamedTuple):
    """A mean, and its interval."""

    mean: float
    low: float
    high: float
    num: int
    """Numbers of which it is the mean."""

    def text(self, show: Callable[[float], str]) -> str:
        """The mean with its interval, which one number does not have; `show` writes a number."""
        return show(self.mean) + f" [{show(self.low)}, {show(self.high)}]" * (self.num > 1)


def bootstrap(values: Sequence[float]) -> Interval:
    """The mean of n numbers with its 95 % percentile bootstrap interval (Efron 1979), by 10,000 resamples of n.

    The resamples are the same at each call. With few numbers the interval is too narrow: with n = 5 it has about 0.63
    times the width of Student's (`sweeps.statistics`), and one number has none.
    """
    value_N = np.asarray(values, np.float64)
    chosen_RxN = np.random.default_rng(0).integers(len(value_N), size=(_NUM_RESAMPLES, len(value_N)))
    mean_R = value_N[chosen_RxN].mean(axis=1)
    low, high = np.quantile(mean_R, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(value_N.mean()), float(low), float(high), len(value_N))


def paired_difference(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Interval | None:
    """The mean of `ours` minus `theirs`, paired by the seeds that both have; None if there are none."""
    differences = [ours[seed] - theirs[seed] for seed in ours if seed in theirs]
    return bootstrap(differences) if differences else None


@dataclass(frozen=True)
class Summary:
    """One method, with its finished runs."""

    name: str
    method: Method
    num_passes: float
    """Of a run."""
    point: Point | None
    """The chosen one; None as long as there is none."""
    validation_of: Mapping[Point, float]
    """The mean accuracy on validation of each point that was tried."""
    outcomes: Mapping[int, Outcome]
    """Of the final runs, by seed, without those that diverged."""
    num_diverged: int
    num_runs: int
    """Final runs that the plan has."""

    @classmethod
    def of(cls, row: Row) -> "Summary":
        """The summary of a row, which may not be finished."""
        plan, name = row.plan, row.name
        final = {run.seed: result for run, result in row.finished(row.final()).items()}
        good = {seed: result for seed, result in final.items() if not result.has_diverged}
        return cls(
            name,
            plan.table.methods[name],
            num_passes(row.config),
            row.chosen(),
            mean_validation(row.finished(plan.tuning(name))),
            good,
            len(final) - len(good),
            plan.num_seeds,
        )

    @property
    def is_at_edge(self) -> bool:
        """Whether an option has the smallest or the largest of its values, if more than two were tried."""
        tried = [sorted(set(values)) for values in zip(*self.validation_of, strict=True)]
        return self.point is not None and any(
            len(values) > 2 and value in (values[0], values[-1])
            for value, values in zip(self.point, tried, strict=True)
        )

    def scores(self, name: str) -> dict[int, float]:
        """The field `name` of the outcomes, or the best accuracy on validation, by seed."""
        found = {
            seed: result.best if name == "validation" else getattr(result, name)
            for seed, result in self.outcomes.items()
        }
        return dict(sorted(found.items()))

    def mean(self, name: str) -> float | None:
        """The mean of `scores`; None without runs."""
        scores = self.scores(name)
        return float(np.mean(list(scores.values()))) if scores else None

    def difference(self, other: "Summary", name: str) -> Interval | None:
        """The mean difference of `scores` to `other`, paired by the seeds that both have; None if there are none."""
        return paired_difference(self.scores(name), other.scores(name))


@dataclass(frozen=True)
class Comparison:
    """All methods of a table, of which the first is plain training."""

    summaries: tuple[Summary, ...]

    def named(self, name: str) -> Summary | None:
        """The method `name`, if it is here."""
        return next((summary for summary in self.summaries if summary.name == name), None)

    def cost(self, summary: Summary) -> float:
        """Its compute, in units of plain training."""
        return summary.num_passes / self.summaries[0].num_passes

    @cached_property
    def frontier(self) -> list[Summary]:
        """The methods with results by their compute, of which no other reaches more with the same compute, or as much
        with less."""
        known = [summary for summary in self.summaries if summary.outcomes]
        place = {summary.name: (self.cost(summary), -(summary.mean("test_best") or 0.0)) for summary in known}
        found: list[Summary] = []
        for summary in sorted(known, key=lambda summary: place[summary.name]):
            last = place[found[-1].name] if found else (0.0, 1.0)
            if place[summary.name][1] < last[1] or place[summary.name] == last:
                found.append(summary)
        return found

    def cheap_share(self) -> tuple[Summary, Summary, float] | None:
        """(cheap method, best method, share of the best gain over plain training that the cheap one has).

        The cheap one is the best of at most `CHEAP`, the best one of at most twice the compute of plain training. None
        if no method has a gain whose interval excludes 0, or no cheap one gains anything.
        """
        plain = self.summaries[0]
        gains = [
            (difference, summary)
            for summary in self.summaries
            if summary.method.flags and (difference := summary.difference(plain, "test_best")) is not None
        ]

        def largest(most_compute: float) -> tuple[Interval, Summary] | None:
            affordable = (gain for gain in gains if self.cost(gain[1]) <= most_compute)
            return max(affordable, key=lambda gain: gain[0].mean, default=None)

        best, cheap = largest(2), largest(CHEAP)
        if best is None or cheap is None or best[0].num < 2 or best[0].low <= 0 or cheap[0].mean <= 0:
            return None
        return cheap[1], best[1], cheap[0].mean / best[0].mean
