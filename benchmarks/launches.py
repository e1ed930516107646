"""The launches of a program compiled for GPUs for the arithmetic between its passes, from its HLO text."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from gnp_scale.planning.hlo import Computation, Instruction, Program

SCOPES = ("gnp_norm", "gnp_perturb", "gnp_update")
"""Named scopes of `gnp_scale.gnp.sharded_ops` and `gnp_scale.training.update`."""

_NO_KERNEL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id"}
_NO_CALL = {"AllocateBuffer", "ConcatBitcast"}
_COLLECTIVE = re.compile(r"all-gather|all-reduce|reduce-scatter|all-to-all|collective")


class Launch(NamedTuple):
    """One kernel of a program."""

    scope: str | None
    """Which of `SCOPES` it belongs to."""
    kind: str
    """"triton", "fusion", "copy", ...; "layout" for a transposition or copy alone."""
    num_bytes: int
    """Bytes of its operands and results on one device."""


def instructions(text: str) -> Iterator[tuple[Computation, Instruction]]:
    """Those of the entry computation that do something at run time. A step has no branches."""
    assert " conditional(" not in text
    entry = Program.parse(text).entry
    for each in entry.instructions.values():
        if each.opcode not in _NO_KERNEL and not any(f'"{target}"' in each.rest for target in _NO_CALL):
            yield entry, each


def launches(text: str) -> list[Launch]:
    """The kernels of a program for GPUs, without collectives."""
    return list(_launches(text))


def _launches(text: str) -> Iterator[Launch]:
    for entry, each in instructions(text):
        if not _COLLECTIVE.match(each.opcode):
            scope = re.search(r'op_name="[^"]*?(' + "|".join(SCOPES) + ")", each.rest)
            num_bytes = each.num_bytes + sum(array.num_bytes for array in entry.arrays(each.operands))
            yield Launch(scope and scope[1], _kind(each), num_bytes)


def memory_bytes(text: str) -> int:
    """Bytes that a program for one TPU reads from its memory and writes to it.

    An instruction reads its operands and writes its results, unless they are on the chip. XLA's own count takes the
    whole array for every slice that is copied onto the chip.
    """
    return sum(_memory_bytes(*each) for each in instructions(text))


def _memory_bytes(entry: Computation, instruction: Instruction) -> int:
    if instruction.opcode.endswith("-done"):
        return 0
    if instruction.opcode in ("copy-start", "slice-start"):  # A result is the source, another one the destination.
        ends = instruction.results[:2]
        return min(x.num_bytes for x in ends) * sum(not x.is_on_chip for x in ends)
    arrays = (*instruction.results, *entry.arrays(instruction.operands))
    return sum(x.num_bytes for x in arrays if not x.is_on_chip)


def _kind(instruction: Instruction) -> str:
    if "triton_kernel_call" in instruction.rest:
        return "triton"
    is_layout = instruction.opcode == "copy" or re.match("wrapped_transpose|transpose|copy", instruction.name)
    return "layout" if is_layout else instruction.opcode


class Count(NamedTuple):
    """Kernels and bytes of a step."""

    num_launches: int
    """For norms, perturbation, blend and update."""
    num_bytes: int
    """Bytes that these launches read and write."""
    num_layout_launches: int
    """Launches in the whole step that only change a layout."""
    num_layout_bytes: int
    num_all_launches: int
    """In the whole step."""


def count(text: str) -> Count:
    """The launches of a step; every change of layout counts as layout."""
    found = launches(text)
    ours = [launch for launch in found if launch.scope and launch.kind != "layout"]
    layouts = [launch for launch in found if launch.kind == "layout"]
    num_bytes = [sum(launch.num_bytes for launch in part) for part in (ours, layouts)]
    return Count(len(ours), num_bytes[0], len(layouts), num_bytes[1], len(found))
