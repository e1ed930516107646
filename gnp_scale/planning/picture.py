"""The picture of a plan: memory and time by method as stacked bars, and images/s by number of chips."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from PIL import Image

from gnp_scale.mesh import resolve
from gnp_scale.planning.alternatives import Alternatives, method_configs
from gnp_scale.planning.hardware import GIB
from gnp_scale.planning.plan import Plan, PlannedStep
from gnp_scale.planning.report import MEMORY
from gnp_scale.sweeps.chart import nice_ticks
from gnp_scale.sweeps.pen import COLOURS, FADED, GRID, LINE, Pen

_PANEL, _HEIGHT = 440, 400
"""Pixels of a panel, with its margins and without its legend."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 78, 20, 68, 62
_BAR = 0.6
"""Share of its place that a bar takes."""
_LETTERS = 180
"""In a line below the panels."""
_TIMES = {"chip_s": "all work of a chip", "fast_s": "fast network", "slow_s": "slow network"}
type _Stacks = Mapping[str, Mapping[str, float]]


def draw_plan(plan: Plan, alternatives: Alternatives, name: str) -> Image.Image:
    """The picture of the plan of the recipe `name`."""
    notes = _notes(plan, alternatives)
    num_lines = max(len(MEMORY), len(_TIMES)) + len(notes) + 1
    pen = Pen(3 * _PANEL, _HEIGHT + LINE * num_lines)
    cluster = plan.cluster
    slices = f" in {cluster.num_slices} slices" if cluster.num_slices > 1 else ""
    head = f"{name} on {cluster.name}{slices}: estimated, not measured"
    pen.text((_LEFT, 14), textwrap.shorten(head, _LETTERS, placeholder=" ..."), "lm")
    memory, times = memory_stacks(alternatives.methods), time_stacks(alternatives.methods)
    limit = cluster.chip.memory_bytes / GIB
    _draw_bars(pen, 0, f"memory of a chip, GiB of {limit:.2f}", memory)
    _draw_bars(pen, _PANEL, "time of a step, ms, if nothing is hidden", times)
    if alternatives.sizes:
        _draw_scaling(pen, 2 * _PANEL, curves(plan, alternatives.sizes))
    for number, note in enumerate(notes):
        pen.text((_LEFT, pen.height - LINE * (len(notes) - number)), note, "lm")
    return pen.picture()


def memory_stacks(methods: Mapping[str, PlannedStep]) -> _Stacks:
    """GiB of a chip by kind, for each method."""
    kinds = {field: label for field, label in MEMORY.items() if field != "total"}
    return {
        name: {label: getattr(step.memory, field) / GIB for field, label in kinds.items()}
        for name, step in methods.items()
    }


def time_stacks(methods: Mapping[str, PlannedStep]) -> _Stacks:
    """Milliseconds of a step by what takes them, for each method."""
    return {
        name: {label: 1e3 * getattr(step.estimate, field) for field, label in _TIMES.items()}
        for name, step in methods.items()
    }


def curves(plan: Plan, sizes: Mapping[int, PlannedStep]) -> dict[str, dict[int, float]]:
    """Images/s by number of chips: if all traffic is hidden, if none is, and in proportion to the fewest chips."""
    batch, first = plan.config.data.batch_size, min(sizes)
    hidden = {num: batch / step.estimate.shortest_s for num, step in sizes.items()}
    shown = {num: batch / step.estimate.longest_s for num, step in sizes.items()}
    ideal = {num: hidden[first] * num / first for num in sizes}
    return {"traffic hidden behind arithmetic": hidden, "no traffic hidden": shown, f"ideal, from {first} chips": ideal}


def _notes(plan: Plan, alternatives: Alternatives) -> list[str]:
    notes = [f"left out: {name}: {why}" for name, why in alternatives.left_out.items()]
    meshes = {name: resolve(config.mesh, plan.cluster.num_chips) for name, config in method_configs(plan).items()}
    notes += [
        f"{name}: on a mesh of replica {mesh.replica} x fsdp {mesh.fsdp} x tensor {mesh.tensor}"
        for name, mesh in meshes.items()
        if mesh != plan.mesh and name in alternatives.methods
    ]
    notes.append(
        f"images/s are of GNP with one perturbation and the recipe's batch of {plan.config.data.batch_size:,} on all "
        f"numbers of chips; only the {len(alternatives.sizes)} marked ones were compiled"
    )
    return [textwrap.shorten(note, _LETTERS, placeholder=" ...") for note in notes]


def _draw_bars(pen: Pen, left: float, title: str, stacks: _Stacks) -> None:
    top = max(sum(stack.values()) for stack in stacks.values())
    ticks = nice_ticks(0, top)
    bottom, per_unit = _HEIGHT - _BOTTOM, (_HEIGHT - _BOTTOM - _TOP) / ticks[-1]
    num_digits = max(0, -math.floor(math.log10(ticks[1]) + 1e-9))
    _draw_frame(pen, left, title, {f"{tick:.{num_digits}f}": bottom - tick * per_unit for tick in ticks})
    place = (_PANEL - _LEFT - _RIGHT) / len(stacks)
    for number, (name, stack) in enumerate(stacks.items()):
        middle, end = left + _LEFT + (number + 0.5) * place, float(bottom)
        for kind, value in enumerate(stack.values()):
            begin = end - value * per_unit
            pen.box((middle - _BAR * place / 2, begin), (middle + _BAR * place / 2, end), COLOURS[kind])
            end = begin
        pen.text((middle, end - 3), f"{sum(stack.values()):.3g}", "mb")
        for line, words in enumerate(name.split(", ")):
            pen.text((middle, bottom + 8 + 18 * line), words, "mt")
    for kind, label in enumerate(next(iter(stacks.values()))):
        y = _HEIGHT + LINE * kind
        pen.box((left + _LEFT, y - 6), (left + _LEFT + 12, y + 6), COLOURS[kind])
        pen.text((left + _LEFT + 20, y), label, "lm")


def _draw_scaling(pen: Pen, left: float, lines: Mapping[str, Mapping[int, float]]) -> None:
    """Both axes are logarithmic."""
    values = [value for line in lines.values() for value in line.values()]
    nums = sorted(next(iter(lines.values())))
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    bottom, height = _HEIGHT - _BOTTOM, _HEIGHT - _BOTTOM - _TOP
    ys = {_word(power): bottom - height * (power - first) / (last - first) for power in range(first, last + 1)}
    _draw_frame(pen, left, "images/s by number of chips (logarithmic)", ys)
    width = _PANEL - _LEFT - _RIGHT
    range_of_x = math.log(nums[-1] / nums[0]) or 1.0
    xs = {num: left + _LEFT + width * (0.08 + 0.84 * math.log(num / nums[0]) / range_of_x) for num in nums}
    for num, x in xs.items():
        pen.text((x, bottom + 8), f"{num:,}", "mt")
    for number, (label, line) in enumerate(lines.items()):
        places = [(xs[num], bottom - height * (math.log10(line[num]) - first) / (last - first)) for num in nums]
        _draw_line(pen, places, (*COLOURS[:2], FADED)[number])
        y = _HEIGHT + LINE * number
        pen.line([(left + _LEFT, y), (left + _LEFT + 24, y)], (*COLOURS[:2], FADED)[number], 2)
        pen.text((left + _LEFT + 34, y), label, "lm")


def _word(power: int) -> str:
    """10 to a power, as 100, 10k or 1M."""
    return f"{10 ** (power % 3)}{'kMGT'[power // 3 - 1]}" if power >= 3 else f"{10.0**power:g}"


def _draw_line(pen: Pen, places: Sequence[tuple[float, float]], colour: str) -> None:
    pen.line(places, colour, 2)
    if colour != FADED:
        for place in places:
            pen.dot(place, 4, colour)


def _draw_frame(pen: Pen, left: float, title: str, ticks: Mapping[str, float]) -> None:
    """The title, and the axes with words at positions on y."""
    right, bottom = left + _PANEL - _RIGHT, _HEIGHT - _BOTTOM
    pen.text((left + _LEFT, 42), title, "lm")
    for word, y in ticks.items():
        pen.line([(left + _LEFT, y), (right, y)], GRID, 1)
        pen.text((left + _LEFT - 8, y), word, "rm")
    pen.line([(left + _LEFT, _TOP), (left + _LEFT, bottom), (right, bottom)], "black", 1)
