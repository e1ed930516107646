"""One Triton launch over many arrays.

A kernel gets the pointers of all leaves as nested tuples. Each of its programs finds its block by a binary search over
program numbers: branches select the pointers, and then one body runs for all leaves. Nothing is packed or copied. A
constant table holds the values of each leaf that are known in advance, one row per leaf:

    (number of the first program of the leaf, number of elements, tag, share)

The kernel decides the meaning of the tag. The leaf's part of a sum is multiplied by the share.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import triton
import triton.language as tl
from jax_triton import triton_call

from gnp_kernels.trees import Shares
from gnp_kernels.tuning import Tuning, tuning_of

type Row = tuple[jax.Array | jax.Ref, ...]
"""The arrays of one leaf that a kernel reads, and Refs for the arrays that it writes."""

_MAX_POINTERS = 490
"""Per launch: CUDA before 12.1 passes 4096 bytes of parameters, and a few of them are not for leaves."""

_BACKEND_OPTIONS = {
    # Products and sums are rounded separately, as in the reference; this costs nothing, because memory is the limit.
    "enable_fp_fusion": False,
    # A version that every assembler since CUDA 12.9 reads: XLA has its own, and Triton would write for the newest.
    "ptx_version": 88,
}

_TOTALS = Tuning(block_size=8192, num_warps=16)
"""For sums of a few ten thousand numbers: few rounds."""


class Launch(NamedTuple):
    """The leaves that one launch works on."""

    places: tuple[int, ...]
    table: tuple[tuple[int, int, int, float], ...]
    num_programs: int
    is_ragged: bool
    """Whether a leaf has a number of elements that is not a multiple of 8."""


def launches(rows: Sequence[Row], tags: Sequence[int], shares: Sequence[float], block_size: int) -> list[Launch]:
    """The launches for all leaves that are not empty; all leaves of a launch have the same types."""
    groups = defaultdict(list)
    for place, row in enumerate(rows):
        if row[0].size:
            groups[tuple(x.dtype for x in row)].append(place)
    found = []
    for types, places in groups.items():
        num_leaves = _MAX_POINTERS // len(types)
        for start in range(0, len(places), num_leaves):
            chunk = places[start : start + num_leaves]
            leaves = [(rows[place][0].size, tags[place], float(shares[place])) for place in chunk]
            found.append(_launch(chunk, leaves, block_size))
    return found


def _launch(places: list[int], leaves: list[tuple[int, int, float]], block_size: int) -> Launch:
    table, num_programs = [], 0
    for size, tag, share in leaves:
        table.append((num_programs, size, tag, share))
        num_programs += -(-size // block_size)
    return Launch(tuple(places), tuple(table), num_programs, any(size % 8 for size, _, _ in leaves))


def empty(shape: tuple[int, ...], dtype: Any) -> jax.Ref:
    """A buffer for a kernel to fill."""
    return jax.new_ref(jax.lax.empty(shape, dtype))


def call(
    kernel: triton.JITFunction,
    op: str,
    rows: Sequence[Row],
    *operands: Any,
    tags: Sequence[int] | None = None,
    shares: Shares = None,
    num_sums: int = 0,
    **constants: Any,
) -> jax.Array:
    """Runs `kernel(leaves, *operands, parts, table=, block_size=, is_ragged=, **constants)` over all rows.

    Args:
        kernel: each of its programs works on the elements from `leaf_of`, `block_of` and `rest_of`. With `num_sums`
            it stores its parts of the sums with `store_part`; without, it has no parameter for them.
        op: name in the tuning, and with the prefix "gnp_" in the compiled program.
        rows: for each leaf, arrays of one shape.
        operands: scalars in memory.
        tags: an integer for each leaf.
        shares: the factor for each leaf's part of the sums.
        num_sums: number of sums over all elements.
        constants: compile-time constants of the kernel.

    Returns:
        The sums, float32 of shape (num_sums,), added in a fixed order.
    """
    tags = [0] * len(rows) if tags is None else tags
    shares = [1.0] * len(rows) if shares is None else shares
    tuning, parts = tuning_of(op), []
    for launch in launches(rows, tags, shares, tuning.block_size):
        shapes = [jax.ShapeDtypeStruct((num_sums, launch.num_programs), jnp.float32)] if num_sums else []
        parts += _triton_call(
            kernel, op, launch.num_programs, tuning, shapes, tuple(rows[place] for place in launch.places), *operands,
            table=launch.table, is_ragged=launch.is_ragged, **constants,
        )  # fmt: skip
    if not parts:
        return jnp.zeros(num_sums, jnp.float32)
    shapes, sizes = [jax.ShapeDtypeStruct((num_sums,), jnp.float32)], tuple(part.shape[1] for part in parts)
    return _triton_call(_totals, f"{op}_totals", num_sums, _TOTALS, shapes, tuple(parts), sizes=sizes)[0]


def _triton_call(
    kernel: triton.JITFunction, op: str, grid: int, tuning: Tuning, out: list[Any], *operands: Any, **constants: Any
) -> list[jax.Array]:
    with jax.named_scope(f"gnp_{op}"):
        return triton_call(
            *operands,
            kernel=kernel,
            out_type=out,
            grid=grid,
            name=f"gnp_{op}",
            num_warps=tuning.num_warps,
            backend_options=_BACKEND_OPTIONS,
            block_size=tuning.block_size,
            **constants,
        )


@triton.jit
def leaf_of(leaves, table: tl.constexpr):
    """(pointers, number of elements, number of this program among the leaf's, tag, share) of this program's leaf."""
    return _leaf_of(tl.program_id(0), leaves, table)


@triton.jit
def _leaf_of(program, leaves, table: tl.constexpr):
    half: tl.constexpr = len(table) // 2
    if half == 0:
        # The compiler would merge identical branches into selects among the pointers of all leaves, which spill. A
        # comment in the assembly, as an operation on `program`, makes them different and costs no instruction.
        first: tl.constexpr = table[0][0]
        program = tl.inline_asm_elementwise(f"// {first}", "=r,0", [program], dtype=tl.int32, is_pure=True, pack=1)
        size = tl.cast(table[0][1], tl.int64)
        tag = tl.cast(table[0][2], tl.int32)
        share = tl.cast(table[0][3], tl.float32)
        found = leaves[0], size, program - first, tag, share
    else:
        if program < table[half][0]:
            found = _leaf_of(program, leaves[:half], table[:half])
        else:
            found = _leaf_of(program, leaves[half:], table[half:])
    return found


@triton.jit
def block_of(size, program, block_size: tl.constexpr):
    """(indices, mask) of this program's part of a leaf's elements, up to the last multiple of 8.

    The compiler sees that the mask is constant over 8 elements, so that accesses are 16 bytes wide.
    """
    i = program.to(tl.int64) * block_size + tl.arange(0, block_size)
    return i, i < size // 8 * 8


@triton.jit
def rest_of(size, program, block_size: tl.constexpr):
    """(indices, mask) of the up to 7 other elements, which one program of the leaf handles."""
    whole = size // 8 * 8
    i = whole + tl.arange(0, 8)
    return i, i < tl.where(program == whole // block_size, size, 0)


@triton.jit
def load(pointer, i, mask):
    """Elements in float32; 0 outside the mask."""
    return tl.load(pointer + i, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store(pointer, i, x, mask):
    """Writes float32 elements, rounded to nearest even."""
    tl.store(pointer + i, x.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def store_part(parts, number: tl.constexpr, part):
    """Writes this program's part of a sum."""
    tl.store(parts + number * tl.num_programs(0) + tl.program_id(0), part)


@triton.jit
def _totals(parts, totals, sizes: tl.constexpr, block_size: tl.constexpr):
    number = tl.program_id(0)
    total = tl.zeros([block_size], tl.float32)
    for launch in tl.static_range(len(sizes)):
        for start in range(0, sizes[launch], block_size):
            i = start + tl.arange(0, block_size)
            total += tl.load(parts[launch] + number * sizes[launch] + i, mask=i < sizes[launch], other=0.0)
    tl.store(totals + number, tl.sum(total))
