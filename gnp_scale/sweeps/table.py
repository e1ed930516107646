"""The table of a comparison: a row for each setting, with means over its seeds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gnp_scale import recipe
from gnp_scale.run.run_dir import changes
from gnp_scale.sweeps.grid import text_of
from gnp_scale.sweeps.markdown import markdown_table
from gnp_scale.sweeps.results import FINISHED, LOSS, TOP1, Result
from gnp_scale.sweeps.statistics import mean_and_interval

SEED = "train.seed"
_MEASURED = ("seeds", "step", TOP1, "95 %", "best", LOSS, "ms/step", "hours", "state")
OPENING = f"{TOP1} and {LOSS} are those of the last evaluation of each run"
"""Of the legend, by which a table of any version is known."""
_LEGEND = (
    f"{OPENING}, and means over the seeds. 95 %: half of the "
    f"width of the confidence interval of the mean of {TOP1}, by Student's t. best: the highest {TOP1} of any "
    "evaluation. seeds: finished / all. hours: of all seeds together."
)


@dataclass(frozen=True)
class Row:
    """The runs of one setting."""

    values: Mapping[str, Any]
    """What the setting has different from others, by key."""
    runs: tuple[Result, ...]
    name: str = ""
    """Of the run, where several have the same setting and seed: they are not independent, so each has a row."""

    @property
    def steps(self) -> list[int]:
        """The steps of the last evaluations, each once."""
        return sorted({run.last[0] for run in self.runs if run.last is not None})

    def last(self, metric: str) -> list[float]:
        """The metric in the last evaluation of each run that has one."""
        return [run.last[1][metric] for run in self.runs if run.last is not None and metric in run.last[1]]


def differing_keys(results: Sequence[Result]) -> list[str]:
    """The keys, other than the seed, that make the runs different ones."""
    first, *others = results
    found = {change.partition(" ")[0] for other in others for change in changes(first.config, other.config)}
    return [key for key in recipe.flatten(first.config) if key in found and key != SEED]


def make_rows(results: Sequence[Result], keys: Iterable[str]) -> list[Row]:
    """The runs, grouped by their values of `keys`, in the order of the first run of each group."""
    columns = [key for key in keys if key != SEED]
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        config = recipe.flatten(result.config)
        groups.setdefault(tuple(config[key] for key in columns), []).append(result)
    rows = []
    for values, runs in groups.items():
        setting = dict(zip(columns, values, strict=True))
        if len({run.seed for run in runs}) == len(runs):
            rows.append(Row(setting, tuple(runs)))
        else:
            rows += [Row(setting, (run,), run.name) for run in runs]
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, with what its columns mean."""
    names = ["run"] if any(row.name for row in rows) else []
    head = [*names, *rows[0].values, *_MEASURED]
    body = [[*([row.name] * len(names)), *map(text_of, row.values.values()), *_measured(row)] for row in rows]
    return "\n".join([*markdown_table([head, *body]), "", _LEGEND, *_notes(rows)]) + "\n"


def _measured(row: Row) -> list[str]:
    accuracy, loss = row.last(TOP1), row.last(LOSS)
    mean, half = mean_and_interval(accuracy) if accuracy else (None, None)
    best = [scores[TOP1] for run in row.runs for scores in run.evaluations.values()]
    times = [run.step_ms for run in row.runs if run.step_ms is not None]
    hours = [run.hours for run in row.runs if run.hours is not None]
    states = Counter(run.state for run in row.runs)
    words = [state if len(states) == 1 else f"{number} {state}" for state, number in states.items()]
    return [
        f"{states[FINISHED]}/{len(row.runs)}",
        "-".join(str(step) for step in (row.steps[:1] + row.steps[1:][-1:])),
        "" if mean is None else f"{mean:.4f}",
        "" if half is None else f"{half:.4f}",
        f"{max(best):.4f}" if best else "",
        f"{np.mean(loss):.4f}" if loss else "",
        f"{np.mean(times):.1f}" if times else "",
        f"{sum(hours):.3f}" if hours else "",
        "; ".join(words),
    ]


def _notes(rows: Sequence[Row]) -> list[str]:
    """What a reader must know: that runs are at different steps; the difference of two settings."""
    notes = []
    steps = sorted({step for row in rows for step in row.steps})
    if len(steps) > 1:
        notes += ["", f"The last evaluations are of different steps, {steps[0]} to {steps[-1]}."]
    if len(rows) == 2 and (difference := paired(*rows)):
        notes += ["", difference]
    return notes


def paired(first: Row, second: Row) -> str | None:
    """The mean difference of eval/top1 over the seeds that both rows have, at the last evaluation that all have.

    None if they have no seed, or no evaluation, in common.
    """
    ours, theirs = ({run.seed: run.evaluations for run in row.runs if run.evaluations} for row in (first, second))
    seeds = sorted(ours.keys() & theirs.keys())
    steps = set.intersection(*({*side[seed]} for side in (ours, theirs) for seed in seeds)) if seeds else set()
    if not steps:
        return None
    step = max(steps)
    mean, half = mean_and_interval([theirs[seed][step][TOP1] - ours[seed][step][TOP1] for seed in seeds])
    interval = (
        "no interval with one seed" if half is None else f"95 % interval {mean - half:+.4f} to {mean + half:+.4f}"
    )
    return (
        f"Difference of {TOP1}, the second row minus the first, at step {step}, paired over {len(seeds)} common "
        f"seed{'s' * (len(seeds) > 1)}: {mean:+.4f} ({interval})."
    )
