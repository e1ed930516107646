"""The TPU kernels against two made of Pallas's own pipelines: `python -m benchmarks.kernels_pipelined [CHIP ...]`.

The numbers are estimates of the TPU compiler (`make tpu-compiler`), as in `benchmarks.kernels_tpu`, not measurements.
They assume that memory is never idle. "At borders" is what this omits, in cycles: reads before a pipeline computes and
writes after it, without the latency of a copy, which is unknown here.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gnp_kernels
import jax
from gnp_kernels import AdamW
from gnp_kernels.blend_update import pallas_tpu as blend_update_tpu
from gnp_kernels.pallas_plan import Plan
from gnp_kernels.pallas_views import TILE, View, padded_size
from gnp_kernels.squared_norm import pallas_tpu as squared_norm_tpu

from benchmarks import pipelined_leaves
from benchmarks.kernels_tpu import FLOAT, MODELS, PLANS, parameter_shapes, xla_bytes_per_cycle
from benchmarks.tpu_estimates import Chip, Schedule, Xla, print_table, schedules
from gnp_scale.config import MeshConfig
from gnp_scale.mesh import make_mesh

WAYS = ("xla", "xla with norms", "leaves", "pipelines 128", "pipelines 16", "calls 128", "calls 128 as given")
"""By XLA, without and with the two norms that the kernels also compute; by `pallas_leaves`; by Pallas's pipelines, with
blocks of at most so many thousand elements. "as given": dimensions are in the order of the shape, not of memory."""
HEADER = """\
| chip | model | operation | made by | cycles | of XLA's | at XLA's bandwidth | calls | bundles | memory floor | \
spills | copies | MiB of them | aliased, MiB | at borders | compile, s |
|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|"""


def squared_norm(implementation: Any, w: Any) -> Any:
    """Only the norm."""
    return gnp_kernels.squared_norm(w, implementation=implementation)


def blend_update(implementation: Any, w: Any, moments: Any, g1: Any, g2: Any, c1: Any) -> Any:
    """Blend and AdamW."""
    new = gnp_kernels.blend_update(
        w, g1, g2, moments, rule=AdamW(weight_decay=0.3), c1=c1, c2=c1, learning_rate=1e-3, count=7,
        implementation=implementation.split()[0],
    )  # fmt: skip
    return new if "norms" in implementation else (new.params, new.moments)


@contextlib.contextmanager
def made_by(way: str) -> Iterator[None]:
    """Makes the Pallas kernels in this way."""
    with contextlib.ExitStack() as stack:
        if way.startswith(("pipelines", "calls")):
            kind, size, *order = way.split()
            if order:
                as_given = property(lambda view: tuple(range(len(view.shape))))
                stack.enter_context(mock.patch.object(View, "order", as_given))
            stack.enter_context(mock.patch.object(pipelined_leaves, "BLOCK_ELEMENTS", int(size) * 1024))
            for module in (blend_update_tpu, squared_norm_tpu):
                stack.enter_context(mock.patch.object(module, "map_leaves", partial(pipelined_leaves.map_leaves, kind)))
        yield


def rows(chip: Chip, dump: Path) -> Iterator[list[str]]:
    """The cells for each model, program and way."""
    shapes_of = {title: parameter_shapes(model) for title, model in MODELS.items()}
    mesh = make_mesh(MeshConfig(), chip.devices()[:1])
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        whole, slope = jax.NamedSharding(mesh, jax.P()), xla_bytes_per_cycle(mesh)
        for title, shapes in shapes_of.items():
            tree = [jax.ShapeDtypeStruct(shape, FLOAT, sharding=whole) for shape in shapes]
            scalar = jax.ShapeDtypeStruct((), FLOAT, sharding=whole)
            programs = {squared_norm: ((tree,), ()), blend_update: ((tree, (tree, tree), tree, tree, scalar), (0, 1))}
            for program, (arguments, donated) in programs.items():
                for cells in by_ways(program, arguments, donated, shapes, chip, slope, dump):
                    yield [title, *cells]


def by_ways(
    program: Callable[..., Any],
    arguments: tuple[Any, ...],
    donated: tuple[int, ...],
    shapes: tuple[tuple[int, ...], ...],
    chip: Chip,
    slope: float,
    dump: Path,
) -> Iterator[list[str]]:
    """The cells for one program, made in all ways."""
    plan = Plan(shapes, **PLANS[f"gnp_{program.__name__}"], num_cores=chip.devices()[0].num_cores)
    num_arrays = len(plan.in_dtypes) + len(plan.out_dtypes)
    num_bytes = num_arrays * FLOAT.itemsize * sum(padded_size(View(shape).stored) for shape in shapes)
    xla = None
    for way in WAYS:
        if way == "xla with norms" and program is squared_norm:
            continue
        for file in dump.glob("*"):
            file.unlink()
        start = time.perf_counter()
        with made_by(way):
            borders = bytes_at_borders(way, plan) / chip.bytes_per_cycle
            traced = jax.jit(partial(program, way if way.startswith("xla") else "pallas"), donate_argnums=donated)
            compiled = traced.trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
        seconds = time.perf_counter() - start
        xla = xla or Xla.of(str(compiled.as_text()))
        figures = figures_of(compiled, xla, schedules(dump), (num_bytes / chip.bytes_per_cycle, num_bytes / slope))
        yield [program.__name__, way, *figures, f"{borders:,.0f}", f"{seconds:.0f}"]


def bytes_at_borders(way: str, plan: Plan) -> int:
    """Bytes that are read before a pipeline computes, and written after it: nothing else moves at that time."""
    bytes_in, bytes_out = (FLOAT.itemsize * len(dtypes) for dtypes in (plan.in_dtypes, plan.out_dtypes))
    if way.startswith("xla"):
        return 0
    if way == "leaves":
        tile = plan.num_cores * math.prod(TILE)
        whole = sum(padded_size(plan.views[leaf].stored) for leaf in plan.whole)
        return plan.streamed[0].num_tiles * tile * bytes_in + (plan.streamed[-1].num_tiles * tile + whole) * bytes_out
    stored = [View(shape).stored for shape in plan.shapes]
    return pipelined_leaves.bytes_at_borders(way.split()[0], stored, bytes_in + bytes_out)


def figures_of(compiled: Any, xla: Xla, kernels: list[Schedule], floors: tuple[float, float]) -> list[str]:
    """The cells of one program that come from the compiler."""
    text = compiled.as_text()
    found = Xla.of(text)
    num_calls = len(re.findall('custom_call_target="tpu_custom_call"', text))
    # Equal kernels are compiled once: if there are any, the total of bundles is unknown.
    bundles = sum(kernel.whole.cycles for kernel in kernels) if len(kernels) == num_calls else 0
    cycles = [found.cycles + num_calls * xla.call_cycles + (max(bundles, x) if num_calls else 0) for x in floors]
    copies = re.findall(r"= f32\[([\d,]*)\]\S* (?:copy|transpose|reshape)\(", text)
    copied = 4 * sum(math.prod(int(n) for n in x.split(",") if n) for x in copies)
    return [
        f"{cycles[0]:,.0f}", *(f"{x / xla.cycles:.3f}" for x in cycles), str(num_calls or found.num_loops),
        f"{bundles:,}" if bundles else "-", f"{floors[0]:,.0f}",
        str(sum(kernel.num_vector_spills for kernel in kernels)), str(len(copies)), f"{copied / 2**20:.1f}",
        f"{compiled.memory_analysis().alias_size_in_bytes / 2**20:.0f}",
    ]  # fmt: skip


if __name__ == "__main__":
    print_table("benchmarks.kernels_pipelined", __doc__, HEADER, ["v5e", "v5p"], rows)
