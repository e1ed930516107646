"""What a plan says, as text and as JSON."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from gnp_scale import recipe
from gnp_scale.gnp import StepKind
from gnp_scale.planning.alternatives import Alternatives
from gnp_scale.planning.hardware import GIB
from gnp_scale.planning.plan import Plan, PlannedStep

_NAMES = {StepKind.PLAIN: "plain", StepKind.FULL: "penalised", StepKind.REUSE: "reused direction"}
MEMORY = {
    "parameters": "parameters",
    "optimizer": "optimizer",
    "other_state": "other state",
    "batch": "batch",
    "gradients": "gradients",
    "activations": "activations and workspace",
    "code": "program",
    "total": "peak",
}
_MOST_TRAFFIC = 8
"""Rows of collectives of a step that the text has; the JSON has all."""


def text(plan: Plan, name: str) -> str:
    """The plan of the recipe `name` for a terminal."""
    parts = [_head(plan, name), _memory(plan), _times(plan), _run(plan)]
    parts += [_collectives(plan, kind) for kind in plan.num_steps]
    return "\n\n".join(parts) + "\n"


def numbers(plan: Plan, name: str, alternatives: Alternatives | None = None) -> dict[str, Any]:
    """The plan as JSON: bytes, seconds and FLOPs of one chip; with the steps of other methods and sizes, if any."""
    steps = {
        _NAMES[kind]: {
            **step_numbers(step, plan.config.data.batch_size),
            "mfu": plan.mfu(kind),
            "num_steps": plan.num_steps.get(kind, 0),
        }
        for kind, step in plan.steps.items()
    }
    return {
        "recipe": name,
        "topology": plan.cluster.name,
        "num_slices": plan.cluster.num_slices,
        "device_kind": plan.cluster.chip.device_kind,
        "num_chips": plan.cluster.num_chips,
        "num_hosts": plan.cluster.num_hosts,
        "mesh": asdict(plan.mesh),
        "memory_bytes_of_a_chip": plan.cluster.chip.memory_bytes,
        "fits": plan.fits,
        "hours": plan.hours,
        "penalty_cost": plan.penalty_cost,
        "cores_per_host": plan.cores_per_host,
        "steps": steps,
        "config": recipe.flatten(plan.config),
    } | ({} if alternatives is None else {"alternatives": _alternatives(plan, alternatives)})


def _alternatives(plan: Plan, found: Alternatives) -> dict[str, Any]:
    batch_size = plan.config.data.batch_size
    groups = {"methods": found.methods, "chips": found.sizes}
    steps = {
        group: {str(key): step_numbers(step, batch_size) for key, step in steps.items()}
        for group, steps in groups.items()
    }
    return steps | {"left_out": dict(found.left_out)}


def step_numbers(step: PlannedStep, batch_size: int) -> dict[str, Any]:
    """A step as JSON: bytes, seconds and FLOPs of one chip."""
    return {
        "memory": asdict(step.memory),
        "model_flops": step.model_flops,
        "num_unknown_loops": step.num_unknown_loops,
        **asdict(step.estimate),
        "shortest_s": step.estimate.shortest_s,
        "longest_s": step.estimate.longest_s,
        "bound": step.estimate.bound,
        "images_per_s": batch_size / step.estimate.shortest_s,
    }


def _head(plan: Plan, name: str) -> str:
    cluster, mesh = plan.cluster, plan.mesh
    slices = f" in {cluster.num_slices} slices" if cluster.num_slices > 1 else ""
    size = f"{_count(cluster.num_chips, 'chip')} of {_count(cluster.num_hosts, 'host')}{slices}"
    return (
        f"{name} on {cluster.name}: {size}, mesh replica {mesh.replica} x fsdp {mesh.fsdp} x tensor {mesh.tensor}, "
        f"batch {plan.config.data.batch_size}\n"
        "All of this is estimated by compilers and from data sheets, not measured (docs/planning.md)."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _memory(plan: Plan) -> str:
    unit, size = ("GiB", GIB) if plan.steps[plan.dearest].memory.total >= GIB else ("MiB", 2**20)
    rows = [(f"memory of a chip, {unit}", *(f"{_NAMES[kind]} step" for kind in plan.steps))]
    rows += [
        (label, *(f"{getattr(step.memory, field) / size:.2f}" for step in plan.steps.values()))
        for field, label in MEMORY.items()
    ]
    return f"{_aligned(rows)}\n{fit_line(plan)}"


def fit_line(plan: Plan) -> str:
    """Whether the run fits into the memory of a chip, and by how much."""
    needed, limit = plan.steps[plan.dearest].memory.total, plan.cluster.chip.memory_bytes
    word = "fits" if plan.fits else "does not fit"
    return (
        f"{word}: {needed / GIB:.2f} of {limit / GIB:.2f} GiB, {abs(limit - needed) / GIB:.2f} GiB "
        f"{'free' if plan.fits else 'too much: --fit looks for what to change'}"
    )


def _times(plan: Plan) -> str:
    columns: dict[str, Callable[[StepKind, PlannedStep], str]] = {
        "TFLOP": lambda kind, step: f"{step.estimate.flops / 1e12:.3f}",
        "memory traffic, GB": lambda kind, step: f"{step.estimate.memory_bytes / 1e9:.2f}",
        "products at the peak rate, ms": lambda kind, step: f"{1e3 * step.estimate.compute_s:.2f}",
        "all work of a chip, ms": lambda kind, step: f"{1e3 * step.estimate.chip_s:.2f}",
        "fast network, ms": lambda kind, step: f"{1e3 * step.estimate.fast_s:.2f}",
        "slow network, ms": lambda kind, step: f"{1e3 * step.estimate.slow_s:.2f}",
        "step, ms": lambda kind, step: f"{1e3 * step.estimate.shortest_s:.2f} to {1e3 * step.estimate.longest_s:.2f}",
        "bound": lambda kind, step: step.estimate.bound,
        "images/s": lambda kind, step: f"{plan.images_per_s(kind):,.0f}",
        "MFU": lambda kind, step: f"{100 * plan.mfu(kind):.0f} %",
        "steps": lambda kind, step: f"{plan.num_steps.get(kind, 0):,}",
    }
    rows = [("time of a step", *(f"{_NAMES[kind]} step" for kind in plan.steps))]
    rows += [(label, *(cell(kind, step) for kind, step in plan.steps.items())) for label, cell in columns.items()]
    num_loops = max(step.num_unknown_loops for step in plan.steps.values())
    note = f"\n{num_loops} loops of a step have no known number of trips, and count once: times are too short"
    return _aligned(rows) + note * (num_loops > 0)


def _run(plan: Plan) -> str:
    (shortest, longest), num_cores = plan.hours, plan.cluster.chip.cores_per_host
    line = (
        f"the run: {_words(shortest)} to {_words(longest)}, without evaluation and checkpoints; "
        f"{plan.penalty_cost:.2f} times plain training"
    )
    cores = f"; {plan.cores_per_host:.1f} of {num_cores} cores of each host to decode images"
    return line + cores * plan.decodes_images


def _words(hours: float) -> str:
    for unit, number in {"hours": 1, "minutes": 60}.items():
        if hours * number >= 1:
            return f"{hours * number:.1f} {unit}"
    return f"{hours * 3600:.1f} seconds"


def _collectives(plan: Plan, kind: StepKind) -> str:
    traffic = plan.steps[kind].estimate.traffic
    rows = [(f"collectives of a {_NAMES[kind]} step", "axes", "network", "times", "MB sent by a chip")]
    rows += [
        (
            each.kind,
            " ".join(each.axes),
            "slow" if each.is_slow else "fast",
            str(each.runs),
            f"{each.num_bytes / 1e6:.3f}",
        )
        for each in traffic[:_MOST_TRAFFIC]
    ]
    return _aligned(rows)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns: the first one to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)
