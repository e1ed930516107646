"""Where the time of a step goes, by JAX's profiler."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from benchmarks.gpu.sizes import STEPS_AT_ONCE, on_gpu

_NUM_STEPS = 2 * STEPS_AT_ONCE


class Profile(NamedTuple):
    """Kernels of one step."""

    busy_s: float
    """Seconds of all kernels together."""
    num_launches: int
    by_family: list[tuple[str, float, int]]
    """Name without numbers, seconds and launches, the dearest first."""

    def __str__(self) -> str:
        rows = (f"{seconds * 1e3:9.3f} ms {count:6d}  {name}" for name, seconds, count in self.by_family)
        return "\n".join([f"{self.busy_s * 1e3:9.3f} ms {self.num_launches:6d}  all", *rows])


def profile(folder: Path, steps: Callable[[], Any]) -> Profile:
    """The kernels of one of the `STEPS_AT_ONCE` compiled steps that `steps` makes; `folder` gets the trace."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    with jax.profiler.trace(folder, profiler_options=options):
        for _ in range(_NUM_STEPS // STEPS_AT_ONCE):
            jax.block_until_ready(steps())
    (file,) = folder.glob("**/*.xplane.pb")
    seconds, counts = defaultdict[str, float](float), defaultdict[str, int](int)
    for name, kernel_s in _kernels(jax.profiler.ProfileData.from_file(str(file))):
        family = re.sub(r"[._]?\d+(?=[._]|$)", "", name)
        seconds[family] += kernel_s / _NUM_STEPS
        counts[family] += 1
    families = [(name, seconds[name], counts[name] // _NUM_STEPS) for name in sorted(seconds, key=seconds.__getitem__)]
    return Profile(sum(seconds.values()), sum(counts.values()) // _NUM_STEPS, families[::-1])


def _kernels(data: Any) -> Iterator[tuple[str, float]]:
    """Name and seconds of each kernel; on a CPU, of each operation."""
    for plane in data.planes:
        if plane.name.startswith("/device:GPU" if on_gpu() else "/host:CPU"):
            for line in plane.lines:
                for event in line.events:
                    if line.name.startswith("Stream") if on_gpu() else "hlo_op" in dict(event.stats):
                        yield event.name, event.duration_ns / 1e9
