"""Times of a step, from what its program computes and moves, and the rates of the hardware (docs/planning.md).

They are estimates: no time is measured.
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax

from gnp_scale.planning import collectives
from gnp_scale.planning.collectives import Collective
from gnp_scale.planning.compiled import Step
from gnp_scale.planning.hardware import Chip, Cluster
from gnp_scale.planning.hlo import Computation, Instruction
from gnp_scale.planning.traffic import memory_bytes

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_PRODUCT_CALLS = ("__cublas", "__cudnn", "__triton_gemm")
_PRODUCTS = ("dot", "convolution")


@dataclass(frozen=True)
class Traffic:
    """Equal collectives of a step together."""

    kind: str
    axes: tuple[str, ...]
    is_slow: bool
    num_bytes: int
    """That each device sends in a step."""
    runs: int


@dataclass(frozen=True)
class Estimate:
    """A step on one chip; times are in seconds."""

    flops: float
    memory_bytes: float
    """Read from the memory of the chip and written to it."""
    compute_s: float
    """Of the products of matrices at the peak rate."""
    chip_s: float
    """Of all arithmetic and traffic inside a chip: at least `compute_s`."""
    traffic: tuple[Traffic, ...]
    fast_s: float
    """Of the traffic through the fast network."""
    slow_s: float

    @property
    def bound(self) -> str:
        """What takes longest; of the work of a chip it is "compute" if products are at least half of it."""
        times = {"fast network": self.fast_s, "slow network": self.slow_s}
        times["compute" if self.compute_s >= 0.5 * self.chip_s else "memory"] = self.chip_s
        return max(times, key=lambda name: times[name])

    @cached_property
    def shortest_s(self) -> float:
        """If all traffic is hidden behind arithmetic."""
        return max(self.chip_s, self.fast_s, self.slow_s)

    @cached_property
    def longest_s(self) -> float:
        """If none is."""
        return self.chip_s + self.fast_s + self.slow_s


def estimate(step: Step, flops: float, cluster: Cluster, mesh: jax.sharding.Mesh) -> Estimate:
    """The times of a compiled step with so many FLOPs on one chip."""
    chip, found = cluster.chip, _sums(collectives.find(step.program, mesh, cluster.slice_size))
    moved = {True: 0, False: 0}
    for each in found:
        moved[each.is_slow] += each.num_bytes
    inside = _inside(step)
    compute_s = flops / chip.peak_flops_per_s
    chip_s = _chip_s(chip, flops, inside)
    fast_s, slow_s = moved[False] / chip.fast_rate, moved[True] / chip.slow_rate
    return Estimate(flops, inside.num_bytes, compute_s, max(chip_s, compute_s), found, fast_s, slow_s)


class _Inside(NamedTuple):
    """What a step moves inside a chip."""

    num_bytes: float
    """Of memory."""
    product_bytes: float
    """Those of products of matrices."""
    kernel_bytes: float
    """Those of kernels for which a TPU's compiler estimates no cycles."""
    cycles: float
    """That it estimates for the others."""


def _inside(step: Step) -> _Inside:
    sums = dict.fromkeys(_Inside._fields, 0.0)
    program = step.program
    for computation, instruction, runs in program.launched():
        moved = runs * memory_bytes(program, computation, instruction)
        sums["num_bytes"] += moved
        if match := _CYCLES.search(instruction.rest):
            sums["cycles"] += runs * int(match[1])
        elif "tpu_custom_call" in instruction.rest:
            sums["kernel_bytes"] += moved
        elif _is_product(program.computations, instruction):
            sums["product_bytes"] += moved
    return _Inside(**sums)


def _chip_s(chip: Chip, flops: float, inside: _Inside) -> float:
    """On a TPU the compiler's cycles, and the traffic of kernels; on a GPU products at the rate that large ones reach,
    and the traffic of all other kernels at that of a copy."""
    if chip.platform == "tpu":
        return inside.cycles / chip.clock_hz + inside.kernel_bytes / chip.memory_rate
    memory_rate = chip.memory_rate * chip.copy_share
    products_s = flops / (chip.peak_flops_per_s * chip.matmul_share)
    others_s = (inside.num_bytes - inside.product_bytes) / memory_rate
    return max(products_s, inside.product_bytes / memory_rate) + others_s


def _is_product(computations: dict[str, Computation], instruction: Instruction) -> bool:
    if instruction.opcode == "custom-call":
        return any(f'"{name}' in instruction.rest for name in _PRODUCT_CALLS)
    inside = [computations[name] for name in instruction.called.get("calls", ()) if name in computations]
    opcodes = [instruction.opcode, *(each.opcode for inner in inside for each in inner.instructions.values())]
    return "__triton_gemm" in instruction.rest or any(opcode in _PRODUCTS for opcode in opcodes)


def _sums(found: list[Collective]) -> tuple[Traffic, ...]:
    sums: dict[tuple[str, tuple[str, ...], bool], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for each in found:
        total = sums[each.kind, each.axes, each.is_slow]
        total[0] += each.runs * each.num_bytes
        total[1] += each.runs
    ordered = sorted(sums.items(), key=lambda item: -item[1][0])
    return tuple(Traffic(*key, round(num_bytes), round(runs)) for key, (num_bytes, runs) in ordered)
