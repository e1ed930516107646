"""The launches of a program compiled for GPUs for the arithmetic between its passes, from its HLO text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SCOPES = ("gnp_norm", "gnp_perturb", "gnp_update")
"""Named scopes of `gnp_scale.gnp.sharded_ops` and `gnp_scale.training.update`."""

NUM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
"""Of an entry, by its type in HLO."""
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\](\{[^}]*\})?")
"""Type, shape and layout of an array in HLO."""
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>.*?) (?P<kind>[\w\-]+)\((?P<rest>.*)")
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


class Array(NamedTuple):
    """An operand or a result."""

    num_bytes: int
    is_on_chip: bool
    """In the memory of a TPU core, not in that of the device."""


class Instruction(NamedTuple):
    """An instruction of a program that does something at run time."""

    name: str
    kind: str
    results: list[Array]
    operands: list[Array]
    rest: str
    """Its line after the kind."""


def instructions(text: str) -> Iterator[Instruction]:
    """Those of the entry computation. A step has no loops or branches."""
    assert " conditional(" not in text
    found: dict[str, list[Array]] = {}
    for match in filter(None, map(_INSTRUCTION.match, text[text.index("\nENTRY ") :].splitlines())):
        name, kind, rest = match["name"], match["kind"], match["rest"]
        found[name] = list(_arrays(match["result"]))
        if kind not in _NO_KERNEL and not any(f'"{target}"' in rest for target in _NO_CALL):
            operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
            yield Instruction(name, kind, found[name], [x for name in operands for x in found.get(name, ())], rest)


def launches(text: str) -> list[Launch]:
    """The kernels of a program for GPUs, without collectives."""
    return list(_launches(text))


def _launches(text: str) -> Iterator[Launch]:
    for name, kind, results, operands, rest in instructions(text):
        if not _COLLECTIVE.match(kind):
            scope = re.search(r'op_name="[^"]*?(' + "|".join(SCOPES) + ")", rest)
            yield Launch(scope and scope[1], _kind(name, kind, rest), sum(x.num_bytes for x in (*results, *operands)))


def memory_bytes(text: str) -> int:
    """Bytes that a program for one TPU reads from its memory and writes to it.

    An instruction reads its operands and writes its results, unless they are on the chip. XLA's own count takes the
    whole array for every slice that is copied onto the chip.
    """
    return sum(map(_memory_bytes, instructions(text)))


def _memory_bytes(instruction: Instruction) -> int:
    if instruction.kind.endswith("-done"):
        return 0
    if instruction.kind in ("copy-start", "slice-start"):  # A result is the source, another one the destination.
        ends = instruction.results[:2]
        return min(x.num_bytes for x in ends) * sum(not x.is_on_chip for x in ends)
    return sum(x.num_bytes for x in (*instruction.results, *instruction.operands) if not x.is_on_chip)


def _kind(name: str, kind: str, rest: str) -> str:
    if "triton_kernel_call" in rest:
        return "triton"
    return "layout" if kind == "copy" or re.match("wrapped_transpose|transpose|copy", name) else kind


def _arrays(result: str) -> Iterator[Array]:
    for dtype, shape, layout in ARRAY.findall(result):
        num_bytes = NUM_BYTES.get(dtype, 0) * math.prod(int(size) for size in shape.split(",") if size)
        yield Array(num_bytes, "S(" in layout)


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
