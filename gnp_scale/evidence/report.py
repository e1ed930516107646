"""The report of a table: Markdown, JSON, and the plot of accuracy over compute."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from gnp_scale.config import check
from gnp_scale.evidence.methods import DOUBLE, PLAIN
from gnp_scale.evidence.plan import Plan
from gnp_scale.evidence.row import words
from gnp_scale.evidence.summary import CHEAP, Comparison, Interval, Summary, bootstrap
from gnp_scale.run.consensus import first_error
from gnp_scale.run.files import replace_file
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.streams import say
from gnp_scale.sweeps.chart import Chart, Mark, draw, png
from gnp_scale.sweeps.markdown import markdown_table
from gnp_scale.sweeps.statistics import mean_and_interval

TABLE_FILE, JSON_FILE, PLOT_FILE = "table.md", "table.json", "frontier.png"
_LEGEND = (
    "Accuracies in %, means over the seeds. compute: passes over a batch, plain training = 1. chosen: the values "
    "with the best accuracy on the images held out, in runs on other seeds; (edge): one is the smallest or largest of "
    "more than two that were tried. test: of the checkpoint that is best on the images "
    "held out. last: of the last checkpoint. The columns with a minus are differences, paired by seed, with 95 % "
    "bootstrap intervals. train: of the last checkpoint on its training images with their labels. *: no other "
    "method reaches more with the same compute, or as much with less. The plot leaves "
    "out methods with less than half of the best accuracy."
)
_EQUAL, _BESIDE = 0.02, 0.02
"""Compute that is shown as equal, and the distance of its methods in the plot."""
type _Column = Callable[[Summary], str]


def write(plan: Plan, comparison: Comparison, folder: Path) -> str:
    """Writes the report into `folder`; returns the table.

    Raises:
        ConfigError: the folder cannot be written.
    """
    text, picture = markdown(plan, comparison), plot(comparison)
    content = json.dumps(_numbers(plan, comparison), indent=2) + "\n"
    pictures = {} if picture is None else {PLOT_FILE: png(picture)}
    write_files(folder, {TABLE_FILE: text.encode(), JSON_FILE: content.encode(), **pictures})
    return text


def write_files(folder: Path, content_of: Mapping[str, bytes]) -> None:
    """Writes files into `folder`, and says which. All processes of a command call it, and the main one writes.

    Raises:
        ConfigError: the folder cannot be written.
    """
    problem = first_error(_write(folder, content_of) if is_main_process() else None)
    check(problem is None, f"{folder} cannot be written ({problem}): choose another --out")
    say(f"written: {', '.join(str(folder / name) for name in content_of)}")


def _write(folder: Path, content_of: Mapping[str, bytes]) -> str | None:
    try:
        for name, content in content_of.items():
            replace_file(folder / name, content)
    except OSError as error:
        return error.strerror
    return None


def markdown(plan: Plan, comparison: Comparison) -> str:
    """The report as text."""
    columns = _columns(comparison)
    rows = [list(columns), *([cell(summary) for cell in columns.values()] for summary in comparison.summaries)]
    seeds = f"{plan.num_tuning_seeds} tuning seeds for each of {len(plan.points(PLAIN))} points, {plan.num_seeds} seeds"
    head = f"{plan.table.about}. {plan.num_steps} steps; {seeds}."
    return "\n".join([head, "", *markdown_table(rows), "", _LEGEND, *_note(comparison)]) + "\n"


def plot(comparison: Comparison) -> Image.Image | None:
    """Accuracy on the test images over compute, with 95 % intervals by Student's t; None without results.

    It leaves out methods with less than half of the best accuracy: the others would be a line beside them.
    """
    lines, label_of = {}, {}
    best = max((summary.mean("test_best") or 0.0 for summary in comparison.frontier), default=0.0)
    for number, summary in enumerate(comparison.summaries, 1):
        scores = tuple(summary.scores("test_best").values())
        if scores and sum(scores) / len(scores) >= best / 2:
            label_of[summary.name] = f"{number}  {summary.name}"
            lines[label_of[summary.name]] = [
                Mark(_place(summary, comparison), *mean_and_interval(scores), scores, str(number))
            ]
    if not lines:
        return None
    costs = [comparison.cost(summary) for summary in comparison.summaries]
    ticks = {cost: f"{cost:.2g}" for cost in costs}
    joined = [label_of[summary.name] for summary in comparison.frontier if summary.name in label_of]
    x_label, y_label = "compute, plain training = 1", "test accuracy: mean, 95 % interval, and each seed"
    return draw(Chart(x_label, y_label, lines, ticks, is_log=False, joins=False, joined=joined))


def _place(summary: Summary, comparison: Comparison) -> float:
    """The compute of a method; those of equal compute are side by side."""
    cost = comparison.cost(summary)
    equal = [other.name for other in comparison.summaries if math.isclose(comparison.cost(other), cost, abs_tol=_EQUAL)]
    return cost + _BESIDE * (equal.index(summary.name) - (len(equal) - 1) / 2)


def _columns(comparison: Comparison) -> dict[str, _Column]:
    columns: dict[str, _Column] = {
        "method": lambda summary: summary.name + "*" * (summary in comparison.frontier),
        "compute": lambda summary: f"{comparison.cost(summary):.2f}",
        "chosen": _point,
        "test": lambda summary: _percent(summary.mean("test_best")),
    }
    for score, word in (("test_best", "test"), ("test_final", "last")):
        if score == "test_final":
            columns["last"] = lambda summary: _percent(summary.mean("test_final"))
        for name in (PLAIN, DOUBLE):
            if (baseline := comparison.named(name)) is not None:
                columns[f"{word} - {name}"] = _difference_to(baseline, score)
    return columns | {
        "train": lambda summary: _percent(summary.mean("train")),
        "held out": lambda summary: _percent(summary.mean("validation")),
        "s": lambda summary: _number(summary.mean("seconds"), 1.0, 0),
        "TFLOP": lambda summary: _number(summary.mean("flops"), 1e-12, 2),
        "test / TFLOP": lambda summary: _ratio(summary, "flops", 1e-12),
        "test / s": lambda summary: _ratio(summary, "seconds", 1.0),
        "runs": _runs,
    }


def _difference_to(baseline: Summary, score: str) -> _Column:
    def cell(summary: Summary) -> str:
        if summary is baseline:
            return ""
        difference = summary.difference(baseline, score)
        return "" if difference is None else difference.text(lambda share: f"{100 * share:+.2f}")

    return cell


def _point(summary: Summary) -> str:
    return "" if summary.point is None else words(summary.point) + " (edge)" * summary.is_at_edge


def _percent(share: float | None) -> str:
    return _number(share, 100.0, 2)


def _number(value: float | None, unit: float, num_digits: int) -> str:
    return "" if value is None else f"{value * unit:.{num_digits}f}"


def _ratio(summary: Summary, cost: str, unit: float) -> str:
    accuracy, value = summary.mean("test_best"), summary.mean(cost)
    return "" if accuracy is None or not value else f"{100 * accuracy / (value * unit):.1f}"


def _runs(summary: Summary) -> str:
    words = f", {summary.num_diverged} diverged" * (summary.num_diverged > 0)
    return f"{len(summary.outcomes)}/{summary.num_runs}{words}"


def _note(comparison: Comparison) -> list[str]:
    found = comparison.cheap_share()
    if found is None:
        return []
    cheap, best, share = found
    return [
        "",
        f"Of the methods with at most {CHEAP:g} times the compute of plain training, {cheap.name} gains the most: "
        f"{100 * share:.0f} % of the gain of {best.name}, the largest with at most twice that compute.",
    ]


def _numbers(plan: Plan, comparison: Comparison) -> dict[str, Any]:
    methods = {summary.name: _numbers_of(summary, comparison) for summary in comparison.summaries}
    return {"about": plan.table.about, "num_steps": plan.num_steps, "methods": methods}


def _numbers_of(summary: Summary, comparison: Comparison) -> dict[str, Any]:
    found: dict[str, Any] = {
        "flags": summary.method.flags,
        "compute": comparison.cost(summary),
        "chosen": None if summary.point is None else dict(summary.point),
        "held_out_of_points": {words(point): mean for point, mean in summary.validation_of.items()},
        "is_on_frontier": summary in comparison.frontier,
        "num_diverged": summary.num_diverged,
    }
    baselines = [other for other in comparison.summaries if other.name in (PLAIN, DOUBLE) and other is not summary]
    for score in ("test_best", "test_final"):
        found[score] = _interval(_bootstrapped(summary, score))
        found[f"{score}_minus"] = {other.name: _interval(summary.difference(other, score)) for other in baselines}
    return found | {"seeds": {str(seed): asdict(result) for seed, result in summary.outcomes.items()}}


def _bootstrapped(summary: Summary, score: str) -> Interval | None:
    scores = summary.scores(score)
    return bootstrap(list(scores.values())) if scores else None


def _interval(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else interval._asdict()
