"""Estimates of cycles for the kernels from TPU compilers, without a TPU; never measurements.

XLA writes its own estimate of cycles for each of its loops, but none for a kernel. The estimate of a kernel is made
here: the larger of its VLIW bundles, one per cycle, and of its bytes over the bandwidth of the chip's memory; plus the
cost of XLA's smallest loop, for the call.
"""

import argparse
import itertools
import math
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels.pallas_plan import Plan, Streamed
from gnp_kernels.pallas_views import TILE, padded_size
from jax.experimental import topologies


@dataclass(frozen=True)
class Chip:
    """A TPU chip; its clock follows from the peak rate and the size of its matrix units."""

    accelerator: str
    """Value of TPU_ACCELERATOR_TYPE."""
    topology: str
    config: str
    """How its cores are set up: two work as one on "megacore"."""
    clock_hz: float
    bandwidth_bytes_per_s: float
    """Published bandwidth of its memory."""

    @property
    def bytes_per_cycle(self) -> float:
        """Memory bandwidth."""
        return self.bandwidth_bytes_per_s / self.clock_hz

    def devices(self) -> list[jax.Device]:
        """The devices of its smallest slice."""
        return topologies.get_topology_desc(
            platform="tpu", topology_name=self.topology, chip_config_name=self.config
        ).devices

    def environment(self, dump: Path | None = None) -> dict[str, str]:
        """The variables of a process that compiles for it, and leaves the compiler's notes in the folder `dump`."""
        notes = f"--xla_jf_dump_to={dump} --xla_jf_dump_llo_text=true --xla_jf_dump_llo_pass_label_regex=final_bundles"
        return {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "TPU_ACCELERATOR_TYPE": self.accelerator,
            "TPU_WORKER_HOSTNAMES": "localhost",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        } | ({} if dump is None else {"LIBTPU_INIT_ARGS": notes})


CHIPS = {
    "v4": Chip("v4-8", "v4:2x2x1", "megacore", 1.05e9, 1228e9),
    "v5e": Chip("v5e-4", "v5e:2x2", "default", 1.50e9, 819e9),
    "v5p": Chip("v5p-8", "v5p:2x2x1", "megacore", 1.75e9, 2765e9),
    "v6e": Chip("v6e-4", "v6e:2x2", "default", 1.75e9, 1640e9),
}


def print_table(
    module: str,
    doc: str | None,
    header: str,
    default: Sequence[str],
    rows: Callable[[Chip, Path], Iterable[Sequence[str]]],
) -> None:
    """The command of a module of estimates: prints a table in Markdown with the rows of each chip.

    Each chip has a process with the environment of its compiler. `rows` gets the chip and the folder of the compiler's
    notes; it gives the cells of each row after the first one, which is the name of the chip.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("chips", nargs="*", default=default, metavar="CHIP", help=", ".join(CHIPS))
    parser.add_argument("--dump", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.dump:
        for cells in rows(CHIPS[args.chips[0]], args.dump):
            print("| " + " | ".join([args.chips[0], *cells]) + " |", flush=True)
        return
    print(header, flush=True)
    for name in args.chips:
        with tempfile.TemporaryDirectory() as dump:
            command = [sys.executable, "-m", module, name, "--dump", dump]
            subprocess.run(command, env=os.environ | CHIPS[name].environment(Path(dump)), check=True)


class Loop(NamedTuple):
    """A loop of a compiled kernel, or the whole kernel as one that runs once."""

    num_bundles: int
    """Of its body, without those of loops in it."""
    num_trips: int
    inner: list["Loop"]

    @property
    def cycles(self) -> int:
        """Bundles that are executed."""
        return self.num_trips * self.cycles_of_trip

    @property
    def cycles_of_trip(self) -> int:
        """Bundles that one trip executes, both sides of all branches counted."""
        return self.num_bundles + sum(loop.cycles for loop in self.inner)


class Schedule(NamedTuple):
    """How the compiler scheduled one kernel."""

    name: str
    whole: Loop
    num_vector_spills: int
    """Spills of vector registers; addresses of operands are kept in scalar memory and not counted."""


class Bundle(NamedTuple):
    """One instruction word."""

    depth: int
    """Of the loops around it."""
    label: str | None
    text: str


_BUNDLE = re.compile(r"^ *(?:0x[0-9a-f]+|0) +(?P<label>[A-Z]{2})?: (?P<depth>[> ]*)\{(?P<text>.*)")
_EXIT = re.compile(r"scmp\.ge\.s32\.totalorder (?:\(!?%\w+\), )?%\w+, (\d+) /\* loop exit test \*/")


def schedules(dump: Path, prefix: str = "gnp_") -> list[Schedule]:
    """The kernels with such a name that were compiled into the folder, in that order."""
    files = sorted(dump.glob(f"*-{prefix}*-final_bundles.txt"))
    return [_schedule(file) for file in files if "schedule-analysis" not in file.name]


def _schedule(file: Path) -> Schedule:
    text = file.read_text()
    (name,) = re.findall(r"-(\w+?)\.\d+-\d+-final", file.name)
    matches = filter(None, map(_BUNDLE.match, text.splitlines()))
    bundles = [Bundle(match["depth"].count(">"), match["label"], match["text"]) for match in matches]
    num_spills = len(re.findall(r"= vst [^;\n]*_spill\]", text))
    return Schedule(name, _loop(bundles, 0, 1), num_spills)


def _loop(bundles: list[Bundle], depth: int, num_trips: int) -> Loop:
    """The loop with these bundles, which have a depth of at least `depth`.

    Empty bundles after a branch are not always marked as part of the loop; then they are counted outside of it.
    """
    starts = [place for place, bundle in enumerate(bundles) if (bundle.depth, bundle.label) == (depth + 1, "LB")]
    inner = []
    for start, end in itertools.pairwise([*starts, len(bundles)]):
        part = [bundle for bundle in bundles[start:end] if bundle.depth > depth]
        inner.append(_loop(part, depth + 1, _num_trips(part, depth + 1)))
    return Loop(sum(bundle.depth == depth for bundle in bundles), num_trips, inner)


def _num_trips(bundles: list[Bundle], depth: int) -> int:
    """Trips of a loop, whose counter starts at 0: a test of an outer loop follows those of the loops in it."""
    tests = [number for bundle in bundles for number in _EXIT.findall(bundle.text)]
    return int(tests[-1 if any(bundle.depth > depth for bundle in bundles) else 0])


class Xla(NamedTuple):
    """XLA's own estimate of one program, without its kernels."""

    num_loops: int
    cycles: int
    """Sum over all loops."""
    call_cycles: int
    """The cheapest loop: the minimum cost of a call."""

    @classmethod
    def of(cls, hlo: str) -> "Xla":
        """The estimates in the text of a compiled program."""
        cycles = [int(number) for number in re.findall(r'"estimated_cycles":"(\d+)"', hlo)]
        return cls(len(cycles), sum(cycles), min(cycles, default=0))


class Kernel(NamedTuple):
    """The estimate of one kernel."""

    name: str
    num_bundles: int
    """Bundles that one core executes."""
    num_bytes: int
    """Bytes read and written, including padding."""
    worst_block: float
    """Bundles over the cycles of its bytes, in the block with the largest ratio; below 1, memory is the limit."""
    num_vector_spills: int

    @classmethod
    def of(cls, schedule: Schedule, plan: Plan, chip: Chip) -> "Kernel":
        """The estimate for a kernel that was compiled for `chip` after `plan`."""
        assert len(plan.kept) == len(plan.shapes), "XLA or another call takes some of the leaves"
        sizes = [jnp.dtype(dtype).itemsize for dtype in (*plan.in_dtypes, *plan.out_dtypes)]
        num_bytes = sum(padded_size(view.stored) for view in plan.views) * sum(sizes)
        shares = [
            loop.cycles_of_trip
            * chip.bytes_per_cycle
            / (leaf.num_tiles * plan.num_cores * math.prod(TILE) * sum(sizes))
            for leaf, loop in _streams(schedule, plan)
        ]
        return cls(schedule.name, schedule.whole.cycles, num_bytes, max(shares), schedule.num_vector_spills)

    def cycles(self, bytes_per_cycle: float) -> float:
        """Cycles without the call itself."""
        return max(self.num_bundles, self.num_bytes / bytes_per_cycle)


def _streams(schedule: Schedule, plan: Plan) -> Iterator[tuple[Streamed, Loop]]:
    """The leaves that are streamed in several chunks, each with its loop, which is one that has a loop in it."""
    leaves = [leaf for leaf in plan.streamed if leaf.num_chunks > 1 and leaf.num_tiles > leaf.num_unrolled]
    loops = [loop for loop in schedule.whole.inner if loop.inner]
    for leaf, loop in zip(leaves, loops, strict=True):
        assert loop.num_trips == leaf.num_chunks, (leaf, loop)
        assert [inner.num_trips for inner in loop.inner] == [leaf.num_tiles // leaf.num_unrolled], (leaf, loop)
        yield leaf, loop
