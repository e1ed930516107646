"""The plot of a comparison: eval/top1 over the numeric value that varies, a line for each combination of the others."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from gnp_scale.sweeps.chart import Chart, Mark, draw
from gnp_scale.sweeps.grid import text_of
from gnp_scale.sweeps.results import TOP1
from gnp_scale.sweeps.statistics import mean_and_interval
from gnp_scale.sweeps.table import Row

_Y_LABEL = f"{TOP1}: mean, 95 % interval, and each seed"


@dataclass(frozen=True)
class _Axis:
    """What is along x: the numbers of `key`, or without it the rows one after the other."""

    key: str | None
    places: Mapping[float, str]
    """Where ticks are, and their words."""


def plot(rows: Sequence[Row]) -> Image.Image | None:
    """The picture; None if no run has been evaluated."""
    shown = [row for row in rows if any(map(math.isfinite, row.last(TOP1)))]
    if not shown:
        return None
    axis = _axis(rows)
    others = [key for key in rows[0].values if key != axis.key and _varies(rows, key)]
    lines: dict[str, list[Mark]] = {}
    for row in shown:
        label = ", ".join(f"{key} {text_of(row.values[key])}" for key in others)
        # Without numbers along x, a line between the rows would mean nothing.
        label, x = ("", float(rows.index(row))) if axis.key is None else (label, float(row.values[axis.key]))
        lines.setdefault(label, []).append(_mark(row, x))
    is_log = axis.key is not None and is_geometric(sorted(axis.places))
    x_label = f"{axis.key}{' (logarithmic)' * is_log}" if axis.key else ", ".join(others) or "run"
    return draw(Chart(x_label, _Y_LABEL, lines, axis.places, is_log, joins=axis.key is not None))


def _mark(row: Row, x: float) -> Mark:
    values = [value for value in row.last(TOP1) if math.isfinite(value)]
    mean, half = mean_and_interval(values)
    return Mark(x, mean, half, tuple(values))


def _axis(rows: Sequence[Row]) -> _Axis:
    """The key with the most different numbers; of several, the first."""
    numbers = {
        key: {float(row.values[key]): text_of(row.values[key]) for row in rows}
        for key in rows[0].values
        if _varies(rows, key) and all(_is_number(row.values[key]) for row in rows)
    }
    if numbers:
        key = max(numbers, key=lambda key: len(numbers[key]))
        return _Axis(key, numbers[key])
    keys = [key for key in rows[0].values if _varies(rows, key)]
    words = [" ".join([row.name, *(text_of(row.values[key]) for key in keys)]).strip() for row in rows]
    return _Axis(None, {float(place): word for place, word in enumerate(words)})


def _varies(rows: Sequence[Row], key: str) -> bool:
    return len({row.values[key] for row in rows}) > 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_geometric(values: Sequence[float]) -> bool:
    """Whether at least three sorted, different numbers are spaced more evenly on a logarithmic axis."""
    if len(values) < 3 or values[0] <= 0:
        return False
    return _unevenness([math.log(value) for value in values]) < _unevenness(values)


def _unevenness(values: Sequence[float]) -> float:
    gaps = [after - before for before, after in itertools.pairwise(values)]
    return max(gaps) / min(gaps)
