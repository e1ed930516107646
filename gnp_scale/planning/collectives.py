"""The collectives of a program: what each device sends, along which axes of the mesh, and through which network."""

import math
import re
from dataclasses import dataclass, replace

import jax
import numpy as np

from gnp_scale.planning.hlo import Computation, Instruction, Program

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
BETWEEN_SLICES = "xla_megascale_runtime"
"""What sends an array to the other slices of TPUs."""
_FUSED_REDUCE_SCATTER = "all-reduce-scatter"
"""How computations are called that TPUs run as one reduce-scatter: an all-reduce and the slice of its result."""
_GROUPS = re.compile("(?:replica_groups|source_target_pairs)=")


@dataclass(frozen=True)
class Collective:
    """A collective of a step."""

    kind: str
    axes: tuple[str, ...]
    """Of the mesh, along which the devices that communicate differ."""
    num_bytes: int
    """That each device sends in one run, by the algorithm of a ring; of an all-reduce, twice its array."""
    is_slow: bool
    """Whether it crosses the network between slices or hosts."""
    runs: float
    """In a step."""


def find(program: Program, mesh: jax.sharding.Mesh, slice_size: int) -> list[Collective]:
    """The collectives of a step.

    Args:
        program: of one device of the mesh.
        mesh: whose devices are in the order of the program's partitions.
        slice_size: Devices that the fast network joins, in that order.
    """
    found: dict[object, Collective] = {}
    for name, computation in program.computations.items():
        runs = program.runs[name]
        for instruction in computation.instructions.values() if runs else ():
            each = _collective(computation, instruction, mesh, slice_size, runs)
            if each is not None and name.startswith(_FUSED_REDUCE_SCATTER):
                each = replace(each, kind="reduce-scatter", num_bytes=each.num_bytes // 2)
            if each is None:
                continue
            # A collective that computes something else meanwhile stands in several fusions, with one number.
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            is_alone = channel is None or not re.search("fus", name)
            key = (name, instruction.name) if is_alone else (each.kind, channel and channel[1])
            if key not in found or found[key].runs < runs:
                found[key] = each
    return list(found.values())


def _collective(
    computation: Computation, instruction: Instruction, mesh: jax.sharding.Mesh, slice_size: int, runs: float
) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    sizes = [array.num_bytes for array in computation.arrays(instruction.operands)]
    if instruction.opcode == "send" and BETWEEN_SLICES in instruction.rest:
        # The other operand is a token.
        return Collective("send", _slow_axes(mesh, slice_size), sum(sizes), is_slow=True, runs=runs)
    if kind not in KINDS:
        return None
    groups = groups_of(instruction)
    is_slow = any(len({place // slice_size for place in group}) > 1 for group in groups)
    return Collective(kind, _axes(groups[0], mesh), _sent(kind, sum(sizes), len(groups[0])), is_slow, runs)


def _sent(kind: str, num_bytes: int, size: int) -> int:
    """Bytes that each of `size` devices sends, of an operand of `num_bytes`."""
    share = (size - 1) / size
    match kind:
        case "all-gather":
            return num_bytes * (size - 1)
        case "all-reduce":
            return round(2 * share * num_bytes)
        case "reduce-scatter" | "all-to-all" | "ragged-all-to-all":
            return round(share * num_bytes)
    return num_bytes


def _axes(group: tuple[int, ...], mesh: jax.sharding.Mesh) -> tuple[str, ...]:
    """The axes along which the devices of a group differ."""
    places = np.unravel_index(np.array(group), mesh.devices.shape)
    return tuple(axis for axis, along in zip(mesh.axis_names, places, strict=True) if np.ptp(along) > 0)


def _slow_axes(mesh: jax.sharding.Mesh, slice_size: int) -> tuple[str, ...]:
    """The axes along which a step leads to another slice."""
    places = np.arange(mesh.devices.size).reshape(mesh.devices.shape) // slice_size
    return tuple(axis for number, axis in enumerate(mesh.axis_names) if np.any(np.diff(places, axis=number)))


def groups_of(collective: Instruction) -> tuple[tuple[int, ...], ...]:
    """The groups of devices that communicate, as positions in the mesh."""
    return parse_groups(_GROUPS.split(collective.rest, maxsplit=1)[1])


def parse_groups(text: str) -> tuple[tuple[int, ...], ...]:
    """The groups of devices at the start of `text`, after `replica_groups=` or so, in any of XLA's forms.

    They are positions in the mesh.

    Raises:
        ValueError: the form is not known.
    """
    if match := re.match(r"\{(\{[\d,{}]*\})\}", text):
        groups = [[int(number) for number in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", match[1])]
    elif match := re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text):
        shape, reshaped, order = ([int(n) for n in (part or "").split(",") if n] for part in match.groups())
        places = np.arange(math.prod(reshaped)).reshape(reshaped)
        groups = places.transpose(order or None).reshape(shape)
    elif match := re.match(r"mesh\[(['\w=,]+)\] \{(['\w,]+)\}(?:,|$)", text):
        sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", match[1])}
        names = re.findall(r"'(\w+)'", match[2])
        places = np.arange(math.prod(sizes.values())).reshape(tuple(sizes.values()))
        last = np.moveaxis(places, [list(sizes).index(name) for name in names], range(-len(names), 0))
        groups = last.reshape(-1, math.prod(sizes[name] for name in names))
    else:
        raise ValueError(f"groups of devices in a form that is not known: {text[:100]}")
    return tuple(tuple(int(place) for place in group) for group in groups)
