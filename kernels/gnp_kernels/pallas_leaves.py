"""Element-wise arithmetic and sums over trees on a TPU: each leaf is computed by the kernel that suits it."""

import functools
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gnp_kernels.pallas_plan import Plan
from gnp_kernels.pallas_stream import Arithmetic, Block, Copies, Kernel, Refs

type Leaves = list[jax.Array]


class Results(NamedTuple):
    """The results of the arithmetic."""

    columns: list[Leaves]
    """For each result, its leaves."""
    sums: list[jax.Array]
    """The sums of the terms over all leaves, float32 scalars."""


def map_leaves(
    name: str,
    arithmetic: Arithmetic,
    columns: list[Leaves],
    out_dtypes: list[list[Any]],
    *,
    scalars: Sequence[jax.Array] = (),
    num_sums: int = 0,
    sources: Sequence[int | None] | None = None,
) -> Results:
    """Applies `arithmetic` to the leaves of `columns`, float32 or bfloat16.

    Leaves of the same types share one call. XLA computes a leaf that neither consists of complete tiles nor fits VMEM,
    because its loop over one large array is good. XLA also computes leaves without elements.

    Args:
        name: name of the kernel in the compiled program.
        arithmetic: its `block.leaf` is the index of a leaf in a column.
        columns: for each input, its leaves; all columns have the same shapes.
        out_dtypes: for each result, the types of its leaves.
        scalars: vectors; the arithmetic reads them in `block.scalars`.
        num_sums: number of terms that the arithmetic returns.
        sources: for each result, the input that it may overwrite, or None; None if there are none.
    """
    parts, order = [Results([[] for _ in out_dtypes], [jnp.zeros((), jnp.float32)] * num_sums)], []
    for places, plan in _calls(columns, out_dtypes, sources or [None] * len(out_dtypes), num_sums):
        inputs = [[column[place] for place in places] for column in columns]
        arithmetic_of_call = partial(_with_place, arithmetic, places)
        if plan.kept:
            parts.append(_call(name, arithmetic_of_call, plan, inputs, list(scalars)))
        else:
            parts.append(_by_xla(arithmetic_of_call, plan, inputs, list(scalars)))
        order += places
    columns = [list(itertools.chain(*leaves)) for leaves in zip(*(part.columns for part in parts), strict=True)]
    places = sorted(range(len(order)), key=order.__getitem__)
    sums = [functools.reduce(jnp.add, totals) for totals in zip(*(part.sums for part in parts), strict=True)]
    return Results([[column[place] for place in places] for column in columns], sums)


def _with_place(arithmetic: Arithmetic, places: list[int], block: Block, *elements: jax.Array) -> Any:
    """`arithmetic` with a block whose `leaf` is the index in the column, not in this call."""
    return arithmetic(block._replace(leaf=places[block.leaf]), *elements)


def _calls(
    columns: list[Leaves], out_dtypes: list[list[Any]], sources: Sequence[int | None], num_sums: int
) -> Iterator[tuple[list[int], Plan]]:
    """For each call, the indices of its leaves, which have the same types, and its plan."""
    groups = defaultdict(list)
    for place, leaves in enumerate(zip(*columns, *out_dtypes, strict=True)):
        dtypes = [jnp.dtype(getattr(leaf, "dtype", leaf)) for leaf in leaves]
        groups[tuple(dtypes[: len(columns)]), tuple(dtypes[len(columns) :])].append(place)
    for dtypes, places in groups.items():
        while places:
            plan = Plan(
                tuple(columns[0][place].shape for place in places), *dtypes, tuple(sources), num_sums, num_cores()
            )
            kept = [places[leaf] for leaf in plan.kept] or places
            yield kept, replace(plan, shapes=tuple(columns[0][place].shape for place in kept))
            places = [place for place in places if place not in kept]


def _by_xla(arithmetic: Arithmetic, plan: Plan, columns: list[Leaves], scalars: Leaves) -> Results:
    """Applies the arithmetic in plain JAX."""
    results, sums = [[] for _ in plan.out_dtypes], [jnp.zeros((), jnp.float32)] * plan.num_sums
    for leaf, elements in enumerate(zip(*columns, strict=True)):
        new, terms = arithmetic(Block(leaf, scalars), *elements)
        for column, x in zip(results, new, strict=True):
            column.append(x)
        sums = [total + jnp.sum(term) for total, term in zip(sums, terms, strict=True)]
    return Results(results, sums)


def num_cores() -> int:
    """Cores per device of the chip for which JAX traces: 2 on v4 and v5p, unless the cores are separate devices."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        device = jax.devices()[0]
    return device.num_cores or 1 if device.device_kind.startswith("TPU") else 1


def _call(name: str, arithmetic: Arithmetic, plan: Plan, columns: list[Leaves], scalars: Leaves) -> Results:
    """Applies the arithmetic in one Pallas call, to the leaves that the plan keeps."""
    scalars = [jnp.ones(1, jnp.int32), *scalars]
    inputs = [[plan.as_operand(leaf, x) for leaf, x in enumerate(column)] for column in columns]
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for column in inputs for x in column))
    varying = jax.sharding.ManualAxisType(varying=axes)
    # Otherwise XLA would copy some operands to VMEM before the call, and results from VMEM after it.
    in_hbm = [[pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in column] for column in inputs]
    out_shapes = [
        [jax.typeof(x).update(dtype=dtype, memory_space=pltpu.HBM, manual_axis_type=varying) for x in inputs[0]]
        for dtype in plan.out_dtypes
    ]
    sums_shape = [jax.ShapeDtypeStruct((plan.num_cores, 1, plan.num_sums), jnp.float32, manual_axis_type=varying)] * (
        plan.num_sums > 0
    )
    hbm, smem = pl.BlockSpec(memory_space=pltpu.HBM), pl.BlockSpec(memory_space=pltpu.SMEM)
    sums_of_core = pl.BlockSpec((None, 1, plan.num_sums), lambda core: (core, 0, 0), memory_space=pltpu.SMEM)
    results, sums = pl.pallas_call(
        partial(_kernel, plan, arithmetic),
        out_shape=(out_shapes, sums_shape),
        grid=(plan.num_cores,),
        in_specs=[[smem for _ in scalars], jax.tree.map(lambda _: hbm, inputs)],
        out_specs=(jax.tree.map(lambda _: hbm, out_shapes), [sums_of_core] * len(sums_shape)),
        scratch_shapes=[Copies.scratch(plan, True), Copies.scratch(plan, False), Kernel.scratch_of_sums(plan)],
        input_output_aliases=_aliases(plan, len(scalars)),
        # The plan determines all bounds; the interpreter of the tests checks them.
        compiler_params=pltpu.CompilerParams(dimension_semantics=(pltpu.PARALLEL,), disable_bounds_checks=True),
        name=name,
    )(scalars, in_hbm)
    columns = [[plan.from_operand(leaf, x) for leaf, x in enumerate(column)] for column in results]
    totals = [
        functools.reduce(jnp.add, [sums[0][core, 0, number] for core in range(plan.num_cores)])
        for number in range(plan.num_sums)
    ]
    return Results(columns, totals)


def _kernel(
    plan: Plan,
    arithmetic: Arithmetic,
    scalars: Refs,
    inputs: list[Refs],
    results: list[Refs],
    sums: Refs,
    scratch_in: Any,
    scratch_out: Any,
    parts: Any,
) -> None:
    fetches, writes = Copies(True, inputs, *scratch_in), Copies(False, results, *scratch_out)
    whole = [
        new if source is None else fetches.whole[source] for new, source in zip(writes.whole, plan.sources, strict=True)
    ]
    writes = writes._replace(whole=whole)
    Kernel(plan, arithmetic, pl.program_id(0), scalars[0], scalars[1:], fetches, writes, *parts).run(sums)


def _aliases(plan: Plan, num_scalars: int) -> dict[int, int]:
    """{operand: result} of the call, for each leaf of each result that overwrites an input."""
    num_leaves = len(plan.shapes)
    return {
        num_scalars + source * num_leaves + leaf: result * num_leaves + leaf
        for result, source in enumerate(plan.sources)
        if source is not None
        for leaf in range(num_leaves)
    }
