"""Two shorter ways to make the TPU kernels with Pallas's own pipelines, to compare with `gnp_kernels.pallas_leaves`.

"calls": one `pallas_call` a leaf, with blocks. "pipelines": one call in which each large leaf has its own
`emit_pipeline`, and another call, for one core, in which VMEM holds all small leaves whole: two cores would update them
twice, in place. Both use `View`; without it XLA would relayout large leaves. They take leaves of the same types, leave
none to XLA, and do not run inside `shard_map`.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from gnp_kernels.pallas_leaves import Leaves, Results, num_cores
from gnp_kernels.pallas_stream import Arithmetic, Block, Ref, Refs
from gnp_kernels.pallas_views import View, padded_size
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

BLOCK_ELEMENTS = 128 * 1024
"""Maximum in a block of one input; VMEM holds two of each."""
WHOLE_ELEMENTS = 16 * 1024
"""In "pipelines", VMEM holds a leaf of up to this size whole."""


def map_leaves(
    way: str,
    name: str,
    arithmetic: Arithmetic,
    columns: list[Leaves],
    out_dtypes: list[list[Any]],
    *,
    scalars: Sequence[jax.Array] = (),
    num_sums: int = 0,
    sources: Sequence[int | None] | None = None,
) -> Results:
    """Like `gnp_kernels.pallas_leaves.map_leaves`."""
    sources, scalars = sources or [None] * len(out_dtypes), list(scalars) or [jnp.zeros(1)]
    dtypes = [column[0] for column in out_dtypes]
    views = [View(x.shape) for x in columns[0]]
    stored = [[view.as_stored(x) for view, x in zip(views, column, strict=True)] for column in columns]
    groups = groups_of(way, [view.stored for view in views])
    results, totals = [{} for _ in dtypes], [jnp.zeros((), jnp.float32)] * num_sums
    for leaves in groups:
        inputs = [[column[leaf] for leaf in leaves] for column in stored]
        new, sums = _call(way, name, arithmetic, leaves, inputs, dtypes, scalars, num_sums, sources)
        for column, part in zip(results, new, strict=True):
            column |= {leaf: views[leaf].from_stored(x) for leaf, x in zip(leaves, part, strict=True)}
        totals = [total + jnp.sum(sums[:, :, number]) for number, total in enumerate(totals)]
    return Results([[column[leaf] for leaf in range(len(views))] for column in results], totals)


def groups_of(way: str, shapes: list[tuple[int, ...]]) -> list[list[int]]:
    """The leaves of each call."""
    if way == "calls":
        return [[leaf] for leaf in range(len(shapes))]
    parts = ([leaf for leaf, shape in enumerate(shapes) if _is_whole(shape) == is_whole] for is_whole in (True, False))
    return [part for part in parts if part]


def bytes_at_borders(way: str, shapes: list[tuple[int, ...]], item_bytes: int) -> int:
    """Bytes of the first reads and the last writes; meanwhile nothing else moves or is computed."""
    first = [shape if way == "pipelines" and _is_whole(shape) else _block(shape)[0] for shape in shapes]
    return item_bytes * sum(padded_size(shape) for shape in first)


def _call(
    way: str,
    name: str,
    arithmetic: Arithmetic,
    leaves: list[int],
    inputs: list[Leaves],
    dtypes: list[Any],
    scalars: Leaves,
    num_sums: int,
    sources: Sequence[int | None],
) -> Any:
    """The results of one call and, for each core, its sums."""
    shapes = [x.shape for x in inputs[0]]
    cores = math.gcd(num_cores(), _block(shapes[0])[1]) if way == "calls" else num_cores()
    if way == "pipelines" and _is_whole(shapes[0]):
        cores = 1
    smem = pl.BlockSpec(memory_space=pltpu.SMEM)
    sums_shape = jax.ShapeDtypeStruct((cores, 1, max(1, num_sums)), jnp.float32)
    sums_spec = pl.BlockSpec((None, 1, max(1, num_sums)), lambda core, *_: (core, 0, 0), memory_space=pltpu.SMEM)
    if way == "calls":
        grid, specs = (cores, _block(shapes[0])[1] // cores), [_spec(shapes[0], cores)]
        body, semantics = partial(_block_of_leaf, arithmetic, leaves[0]), (pltpu.PARALLEL, pltpu.ARBITRARY)
    else:
        specs = [pl.BlockSpec(memory_space=pltpu.VMEM if _is_whole(shape) else pltpu.HBM) for shape in shapes]
        grid, semantics = (cores,), (pltpu.PARALLEL,)
        body = partial(_all_leaves, arithmetic, leaves, cores)
    out_shapes = [[jax.ShapeDtypeStruct(shape, dtype) for shape in shapes] for dtype in dtypes]
    aliases = {
        len(scalars) + source * len(leaves) + place: result * len(leaves) + place
        for result, source in enumerate(sources)
        if source is not None
        for place in range(len(leaves))
    }
    return pl.pallas_call(
        body,
        out_shape=(out_shapes, sums_shape),
        grid=grid,
        in_specs=[[smem for _ in scalars], [specs for _ in inputs]],
        out_specs=([specs for _ in dtypes], sums_spec),
        input_output_aliases=aliases,
        compiler_params=pltpu.CompilerParams(dimension_semantics=semantics, disable_bounds_checks=True),
        name=name,
    )(scalars, inputs)


def _block_of_leaf(
    arithmetic: Arithmetic, leaf: int, scalars: Refs, inputs: list[Refs], results: list[Refs], sums: Ref
) -> None:
    pl.when(pl.program_id(1) == 0)(lambda: _clear(sums))
    _compute(arithmetic, Block(leaf, scalars), [x for (x,) in inputs], [x for (x,) in results], sums)


def _all_leaves(
    arithmetic: Arithmetic,
    leaves: list[int],
    cores: int,
    scalars: Refs,
    inputs: list[Refs],
    results: list[Refs],
    sums: Ref,
) -> None:
    core = pl.program_id(0)
    _clear(sums)
    for place, leaf in enumerate(leaves):
        operands, new = ([column[place] for column in columns] for columns in (inputs, results))
        block = Block(leaf, scalars)
        if _is_whole(operands[0].shape):
            _compute(arithmetic, block, operands, new, sums)
            continue
        num = _block(operands[0].shape)[1]
        # If the cores cannot share the blocks equally, the first core computes all of them.
        shared_by = math.gcd(cores, num)
        block_shape, blocks = _block(operands[0].shape)[0], num // shared_by
        first = core * blocks if shared_by > 1 else 0
        spec = pl.BlockSpec(block_shape, lambda number, first=first: (first + number, 0, 0))
        pipeline = pltpu.emit_pipeline(
            lambda *refs, block=block: _compute(arithmetic, block, refs[: len(inputs)], refs[len(inputs) :], sums),
            grid=(blocks,),
            in_specs=[spec] * len(operands),
            out_specs=[spec] * len(new),
        )
        pl.when(shared_by == cores or core == 0)(partial(pipeline, *operands, *new))


def _compute(arithmetic: Arithmetic, block: Block, operands: Sequence[Ref], results: Sequence[Ref], sums: Ref) -> None:
    """Computes a block: a vector at once, another array one slice of its first dimension at a time."""
    if operands[0].ndim == 1:
        new, terms = arithmetic(block, *(x[...] for x in operands))
        for ref, x in zip(results, new, strict=True):
            ref[...] = x
        totals = [jnp.sum(term) for term in terms]
    else:

        def part(number: jax.Array, carried: Leaves) -> Leaves:
            new, terms = arithmetic(block, *(x[number] for x in operands))
            for ref, x in zip(results, new, strict=True):
                ref[number] = x
            return [total + term for total, term in zip(carried, terms, strict=True)]

        shape = operands[0].shape[1:]
        num_terms = len(jax.eval_shape(lambda: arithmetic(block, *(x[0] for x in operands)))[1])
        carried = [jnp.zeros(shape, jnp.float32)] * num_terms
        totals = [jnp.sum(x) for x in lax.fori_loop(0, operands[0].shape[0], part, carried)]
    for number, total in enumerate(totals):
        sums[0, number] += total


def _clear(sums: Ref) -> None:
    for number in range(sums.shape[1]):
        sums[0, number] = 0.0


def _is_whole(shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 or padded_size(shape) <= WHOLE_ELEMENTS


def _block(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Shape and number of the blocks of a leaf: the largest divisor of its first dimension that fits."""
    if len(shape) == 1:
        return shape, 1
    size = padded_size((1, *shape[1:]))
    depth = max(n for n in range(1, shape[0] + 1) if shape[0] % n == 0 and (n == 1 or n * size <= BLOCK_ELEMENTS))
    return (depth, *shape[1:]), shape[0] // depth


def _spec(shape: tuple[int, ...], cores: int) -> pl.BlockSpec:
    block, num = _block(shape)
    per_core = num // cores
    return pl.BlockSpec(block, lambda core, number: (core * per_core + number, *([0] * (len(shape) - 1))))
