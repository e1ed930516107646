"""The launches of a program compiled for GPUs for the arithmetic between its passes, from its HLO text."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

SCOPES = ("gnp_norm", "gnp_perturb", "gnp_update")
"""Named scopes of `gnp_scale.gnp.sharded_ops` and `gnp_scale.training.update`."""

_NUM_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<result>.*?) (?P<kind>[\w\-]+)\((?P<rest>.*)")
_NO_KERNEL = {"parameter", "constant", "bitcast", "tuple", "get-tuple-element", "after-all", "partition-id"}
_COLLECTIVE = re.compile(r"all-gather|all-reduce|reduce-scatter|all-to-all|collective")


class Launch(NamedTuple):
    """One kernel of a program."""

    scope: str | None
    """Which of `SCOPES` it belongs to."""
    kind: str
    """"triton", "fusion", "copy", ...; "layout" for a transposition or copy alone."""
    num_bytes: int
    """Bytes of its operands and results on one device."""


def launches(text: str) -> list[Launch]:
    """The kernels of the entry computation, without collectives. A program of this kind has no loops or branches."""
    assert " conditional(" not in text
    return list(_launches(text[text.index("\nENTRY ") :]))


def _launches(entry: str) -> Iterator[Launch]:
    results: dict[str, str] = {}
    for match in filter(None, map(_INSTRUCTION.match, entry.splitlines())):
        results[match["name"]] = match["result"]
        if match["kind"] in _NO_KERNEL or _COLLECTIVE.match(match["kind"]) or '"AllocateBuffer"' in match["rest"]:
            continue
        scope = re.search(r'op_name="[^"]*?(' + "|".join(SCOPES) + ")", match["rest"])
        operands = re.findall(r"%([\w.\-]+)", match["rest"].partition("), ")[0])
        num_bytes = _num_bytes(match["result"]) + sum(_num_bytes(results.get(name, "")) for name in operands)
        yield Launch(scope and scope[1], _kind(match["name"], match["kind"], match["rest"]), num_bytes)


def _kind(name: str, kind: str, rest: str) -> str:
    if "triton_kernel_call" in rest:
        return "triton"
    return "layout" if kind == "copy" or re.match("wrapped_transpose|transpose|copy", name) else kind


def _num_bytes(result: str) -> int:
    return sum(
        _NUM_BYTES.get(dtype, 0) * math.prod(int(size) for size in shape.split(",") if size)
        for dtype, shape in _ARRAY.findall(result)
    )


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
