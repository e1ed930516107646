"""Draws a line chart with intervals; positions are in pixels of the picture."""

import io
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from gnp_scale.sweeps.pen import COLOURS, FADED, GRID, LINE, Pen

_WIDTH, _HEIGHT = 760, 440
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 24, 20, 64
"""Margins of the axes."""
_TICK, _CAP, _DOT, _SEED_DOT = 5, 5, 5, 2
_NUM_TICKS = 6
_BESIDE, _ALL_BESIDE = 6, 30
"""Pixels between the marks of two lines at the same x, and at most between those of the first and the last line."""


@dataclass(frozen=True)
class Mark:
    """A mean at x, with half of the width of its interval (if there is one), and the values it is the mean of."""

    x: float
    mean: float
    half: float | None
    values: tuple[float, ...]
    word: str = ""
    """Above the mark."""


@dataclass(frozen=True)
class Chart:
    """What a chart shows."""

    x_label: str
    y_label: str
    lines: Mapping[str, Sequence[Mark]]
    """By their words in the legend; a single line needs none."""
    ticks: Mapping[float, str]
    """On x, with their words."""
    is_log: bool
    joins: bool
    """Whether the marks of a line are joined."""
    joined: Sequence[str] = ()
    """Lines whose first marks are joined, in this order."""
    are_shares: bool = True
    """Whether values on y are from 0 to 1, where intervals are cut off."""


@dataclass(frozen=True)
class _Space:
    """Where numbers are in the picture."""

    x: Callable[[float], float]
    y: Callable[[float], float]


def png(picture: Image.Image) -> bytes:
    """The picture as a file."""
    data = io.BytesIO()
    picture.save(data, "png")
    return data.getvalue()


def draw(chart: Chart) -> Image.Image:
    """The picture of a chart."""
    labels = [label for label in chart.lines if label]
    size = _WIDTH, _HEIGHT + LINE * len(labels) + 10 * bool(labels)
    pen = Pen(*size)
    ticks = nice_ticks(*_y_range(chart))
    space = _space(chart, ticks)
    _draw_axes(pen, chart, ticks, space)
    shifts = {label: _shift(number, len(chart.lines)) for number, label in enumerate(chart.lines)}
    firsts = [(chart.lines[label][0], shifts[label]) for label in chart.joined]
    for pair in itertools.pairwise((space.x(mark.x) + shift, space.y(mark.mean)) for mark, shift in firsts):
        pen.line(pair, FADED, 2)
    for number, (label, marks) in enumerate(chart.lines.items()):
        colour, shift = COLOURS[number % len(COLOURS)], shifts[label]
        _draw_line(pen, sorted(marks, key=lambda mark: mark.x), colour, space, shift, joins=chart.joins)
        if label:
            y = _HEIGHT + LINE * number
            pen.line([(_LEFT, y), (_LEFT + 24, y)], colour, 2)
            pen.dot((_LEFT + 12, y), _DOT, colour)
            pen.text((_LEFT + 34, y), label, "lm")
    return pen.picture()


def _shift(number: int, num_lines: int) -> float:
    """Pixels by which the marks of a line are moved along x."""
    return min(_BESIDE, _ALL_BESIDE / num_lines) * (number - (num_lines - 1) / 2)


def nice_ticks(low: float, high: float) -> list[float]:
    """At most about 6 round numbers at equal distances, from one not above `low` to one not below `high`."""
    width = (high - low) / (_NUM_TICKS - 1)
    unit = 10.0 ** math.floor(math.log10(width))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= width * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * number for number in range(first, last + 1)]


def _y_range(chart: Chart) -> tuple[float, float]:
    """The lowest and the highest value that is shown."""
    marks = [mark for line in chart.lines.values() for mark in line]
    ends = [mark.mean + sign * (mark.half or 0) for mark in marks for sign in (-1, 1)]
    if chart.are_shares:
        ends = [min(1.0, max(0.0, end)) for end in ends]
    values = [*ends, *(value for mark in marks for value in mark.values)]
    low, high = min(values), max(values)
    # Differences that are smaller are not worth a scale of their own.
    least = 1e-3 * (1.0 if chart.are_shares else abs(high) or 1.0)
    return (low, high) if high - low > least else (low - 5 * least, high + 5 * least)


def _space(chart: Chart, y_ticks: Sequence[float]) -> _Space:
    scale: Callable[[float], float] = math.log if chart.is_log else float
    places = [scale(x) for x in chart.ticks]
    margin = (max(places) - min(places)) * 0.08 or 1.0
    low, high = min(places) - margin, max(places) + margin
    bottom, top = y_ticks[0], y_ticks[-1]
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    return _Space(
        lambda x: _LEFT + width * (scale(x) - low) / (high - low),
        lambda y: _TOP + height * (top - min(top, max(bottom, y))) / (top - bottom),
    )


def _draw_axes(pen: Pen, chart: Chart, y_ticks: Sequence[float], space: _Space) -> None:
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    num_digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0]) + 1e-9))
    for tick in y_ticks:
        y = space.y(tick)
        pen.line([(_LEFT, y), (right, y)], GRID, 1)
        pen.text((_LEFT - 8, y), f"{tick:.{num_digits}f}", "rm")
    end = -math.inf
    for x, word in sorted(chart.ticks.items()):
        place, half = space.x(x), pen.width(word) / 2
        pen.line([(place, bottom), (place, bottom + _TICK)], "black", 1)
        # Words that would overlap the previous ones are left out.
        if place - half > end:
            pen.text((place, bottom + 9), word, "mt")
            end = place + half + 6
    pen.line([(_LEFT, _TOP), (_LEFT, bottom), (right, bottom)], "black", 1)
    pen.text(((_LEFT + right) / 2, bottom + 34), chart.x_label, "mt")
    pen.upward_text((14, (_TOP + bottom) / 2), chart.y_label)


def _draw_line(pen: Pen, marks: Sequence[Mark], colour: str, space: _Space, shift: float, *, joins: bool) -> None:
    places = [(space.x(mark.x) + shift, space.y(mark.mean)) for mark in marks]
    if joins:
        for pair in itertools.pairwise(places):
            pen.line(pair, colour, 2)
    for (x, y), mark in zip(places, marks, strict=True):
        if mark.half is not None:
            ends = [space.y(mark.mean + sign * mark.half) for sign in (-1, 1)]
            pen.line([(x, ends[0]), (x, ends[1])], colour, 1)
            for end in ends:
                pen.line([(x - _CAP, end), (x + _CAP, end)], colour, 1)
        pen.dot((x, y), _DOT, colour)
        pen.text((x, space.y(mark.mean + (mark.half or 0)) - _DOT - 3), mark.word, "mb")
        for value in mark.values if len(mark.values) > 1 else ():
            pen.dot((x, space.y(value)), _SEED_DOT, FADED)
