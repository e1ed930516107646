"""Element-wise arithmetic and sums over all leaves of trees, in one Pallas call for TPUs.

Leaves that consist of complete hardware tiles form one long stream of chunks of tiles, in the order of the leaves. The
kernel computes one chunk while it fetches later ones and writes back earlier ones, also across the borders of leaves,
so memory is never idle. VMEM holds all other leaves whole: they are fetched during the stream and computed after it.
On chips with two cores per device, each core processes half of each chunk.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gnp_kernels.pallas_plan import NUM_FETCHED, NUM_WRITTEN, Blocks, Plan, Streamed
from gnp_kernels.pallas_views import NUM_LANES, NUM_SUBLANES, TILE

type Ref = Any
type Refs = list[Ref]


class Block(NamedTuple):
    """What the arithmetic knows besides the elements of a block of a leaf."""

    leaf: int
    """Index of the leaf in the call."""
    scalars: Refs
    """Vectors of scalars."""


type Arithmetic = Callable[..., tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]]
"""(block, *elements of the inputs) -> (elements of the results, float32 terms of the sums), all of equal shape."""


class Copies(NamedTuple):
    """The copies between the chip's memory (HBM) and a core's (VMEM), in one direction."""

    is_fetch: bool
    leaves: list[Refs]
    """For each input or result, its leaves in HBM: lists of tiles if they are streamed, else as stored."""
    chunks: Refs
    """For each, its ring of chunks in VMEM."""
    whole: list[Refs]
    """For each, the leaves that VMEM holds whole."""
    chunk_semaphores: Ref
    whole_semaphore: Ref

    @classmethod
    def scratch(cls, plan: Plan, is_fetch: bool) -> list[Any]:
        """The scratch memory of the last four fields."""
        dtypes, ring_size = (plan.in_dtypes, NUM_FETCHED) if is_fetch else (plan.out_dtypes, NUM_WRITTEN)
        sources = [None] * len(dtypes) if is_fetch else plan.sources
        whole = [plan.views[leaf].stored for leaf in plan.whole]
        num_tiles = max((leaf.num_tiles for leaf in plan.streamed), default=1)
        return [
            [pltpu.VMEM((ring_size, num_tiles, *TILE), dtype) for dtype in dtypes],
            # A result that overwrites an input is computed in the input's memory.
            [
                [pltpu.VMEM(shape, dtype) for shape in whole if source is None]
                for dtype, source in zip(dtypes, sources, strict=True)
            ],
            pltpu.SemaphoreType.DMA((ring_size,)),
            pltpu.SemaphoreType.DMA,
        ]

    def place(self, leaf: Streamed, number: Any) -> Any:
        """Position in the ring of a chunk of `leaf`."""
        return lax.bitwise_and(jnp.int32(leaf.first + number), jnp.int32(self.chunk_semaphores.shape[0] - 1))

    def of_chunk(self, leaf: Streamed, number: Any, first_tile: Any) -> Iterator[Any]:
        """The copies of chunk `number` of a leaf; it starts at `first_tile`."""
        place = self.place(leaf, number)
        for leaves, chunks in zip(self.leaves, self.chunks, strict=True):
            in_hbm = leaves[leaf.leaf].at[pl.ds(first_tile, leaf.num_tiles)]
            yield self._copy(in_hbm, chunks.at[place, pl.ds(0, leaf.num_tiles)], self.chunk_semaphores.at[place])

    def of_whole(self, index: int, leaf: int) -> Iterator[Any]:
        """The copies of a leaf that VMEM holds whole; `index` is its index among these leaves."""
        for leaves, whole in zip(self.leaves, self.whole, strict=True):
            yield self._copy(leaves[leaf], whole[index], self.whole_semaphore)

    def _copy(self, in_hbm: Ref, in_vmem: Ref, semaphore: Ref) -> Any:
        return pltpu.make_async_copy(*((in_hbm, in_vmem) if self.is_fetch else (in_vmem, in_hbm)), semaphore)


class Kernel(NamedTuple):
    """One core's part of a call."""

    plan: Plan
    arithmetic: Arithmetic
    core: jax.Array
    one: Ref
    """A vector of the integer 1."""
    scalars: Refs
    fetches: Copies
    writes: Copies
    chunk_sums: Refs
    """Sums over the elements of a chunk that have the same position in a tile."""
    tile_sums: Refs
    """Sums over all elements that have the same position in a tile."""
    vector_sums: Refs
    """The same for vectors."""

    @staticmethod
    def scratch_of_sums(plan: Plan) -> list[Any]:
        """The scratch memory of the last three fields."""
        lengths = [plan.views[leaf].stored[0] for leaf in plan.whole if len(plan.views[leaf].stored) == 1]
        shape = (min(max(lengths, default=1), plan.num_registers * math.prod(TILE)),)
        return [[pltpu.VMEM(x, jnp.float32) for _ in range(plan.num_sums)] for x in (TILE, TILE, shape)]

    def run(self, sums: Refs) -> None:
        """Computes all results, and writes this core's part of the sums, if any, to `sums[0]`."""
        _clear([*self.tile_sums, *self.vector_sums])
        self._on_share(lambda *leaf: _start(self.fetches.of_whole(*leaf)))
        for number in range(min(NUM_FETCHED - 1, self.plan.num_chunks)):
            self._on_chunk(self.plan.streamed[0], number, number, number, self._fetch)
        for leaf in self.plan.streamed:
            lax.fori_loop(0, leaf.num_chunks, partial(self._compute_chunk, leaf), None)
        for number in range(max(0, self.plan.num_chunks - NUM_WRITTEN), self.plan.num_chunks):
            self._on_chunk(self.plan.streamed[0], number, number, number, self._await_write)
        self._on_share(lambda *leaf: _wait(self.fetches.of_whole(*leaf)))
        self._on_share(self._compute_whole)
        self._on_share(lambda *leaf: _wait(self.writes.of_whole(*leaf)))
        for number, (tiles, vector) in enumerate(zip(self.tile_sums, self.vector_sums, strict=True)):
            sums[0][0, number] = jnp.sum(tiles[...]) + jnp.sum(vector[...])

    def _on_share(self, act: Callable[[int, int], None]) -> None:
        """Calls `act` on this core's share of the leaves that VMEM holds whole."""
        for index, leaf in enumerate(self.plan.whole):
            pl.when(self.core == index % self.plan.num_cores)(partial(act, index, leaf))

    def _on_chunk(self, leaf: Streamed, number: Any, lowest: int, highest: int, act: Callable[..., None]) -> None:
        """Calls `act` on chunk `number`, counted from the first of `leaf`, if it exists in any leaf."""
        for other, start, some_before, some_after in self.plan.chunks(leaf, lowest, highest):
            is_here = True
            if some_before:
                is_here = number >= start
            if some_after:
                is_here &= number < start + other.num_chunks
            pl.when(is_here)(partial(act, other, number - start))

    def _first_tile(self, leaf: Streamed, number: Any) -> Any:
        return (number * self.plan.num_cores + self.core) * leaf.num_tiles

    def _fetch(self, leaf: Streamed, number: Any) -> None:
        _start(self.fetches.of_chunk(leaf, number, self._first_tile(leaf, number)))

    def _await_write(self, leaf: Streamed, number: Any) -> None:
        _wait(self.writes.of_chunk(leaf, number, self._first_tile(leaf, number)))

    def _compute_chunk(self, leaf: Streamed, number: jax.Array, _: None) -> None:
        """Computes one chunk, and meanwhile fetches the one that replaces the previous chunk."""
        ahead, behind, last = NUM_FETCHED - 1, NUM_WRITTEN, leaf.num_chunks - 1
        first_tile = self._first_tile(leaf, number)
        self._on_chunk(leaf, number + ahead, ahead, last + ahead, self._fetch)
        _wait(self.fetches.of_chunk(leaf, number, first_tile))
        self._on_chunk(leaf, number - behind, -behind, last - behind, self._await_write)
        # Sum over each chunk first, then over all chunks: the rounding error of a sum grows with its length.
        _clear(self.chunk_sums)
        lax.fori_loop(0, leaf.num_tiles // leaf.num_unrolled, partial(self._compute_group, leaf, number), None)
        for total, part in zip(self.tile_sums, self.chunk_sums, strict=True):
            total[...] += part[...]
        _start(self.writes.of_chunk(leaf, number, first_tile))

    def _compute_group(self, leaf: Streamed, number: jax.Array, group: jax.Array, _: None) -> None:
        """Computes a few tiles of a chunk."""
        size = leaf.num_unrolled
        tiles = pl.ds(group * size, size)
        elements = [chunks[self.fetches.place(leaf, number), tiles] for chunks in self.fetches.chunks]
        results, terms = self.arithmetic(Block(leaf.leaf, self.scalars), *elements)
        for chunks, result in zip(self.writes.chunks, results, strict=True):
            chunks[self.writes.place(leaf, number), tiles] = result
        for part, term in zip(self.chunk_sums, terms, strict=True):
            part[...] += jnp.sum(term, axis=0)

    def _compute_whole(self, index: int, leaf: int) -> None:
        """Computes a leaf that VMEM holds whole, a few registers at a time, and starts to write it."""

        # The compiler does not know that this is true. Otherwise it would mix leaves until it runs out of registers.
        @pl.when(self.one[0] == 1)
        def compute() -> None:
            for blocks in self.plan.blocks(leaf):
                lax.fori_loop(0, blocks.num, partial(self._compute_block, index, leaf, blocks), None)

        _start(self.writes.of_whole(index, leaf))

    def _compute_block(self, index: int, leaf: int, blocks: Blocks, number: jax.Array, _: None) -> None:
        starts: list[Any] = list(blocks.starts)
        starts[blocks.dim] += number * blocks.shape[blocks.dim]
        place = tuple(pl.ds(start, size) for start, size in zip(starts, blocks.shape, strict=True))
        elements = [whole[index][place] for whole in self.fetches.whole]
        results, terms = self.arithmetic(Block(leaf, self.scalars), *elements)
        for whole, result in zip(self.writes.whole, results, strict=True):
            whole[index][place] = result
        for tiles, vector, term in zip(self.tile_sums, self.vector_sums, terms, strict=True):
            _add(term, vector if term.ndim == 1 else tiles)


def _start(copies: Iterator[Any]) -> None:
    for copy in copies:
        copy.start()


def _wait(copies: Iterator[Any]) -> None:
    for copy in copies:
        copy.wait()


def _clear(sums: Refs) -> None:
    for part in sums:
        part[...] = jnp.zeros(part.shape, part.dtype)


def _add(x: jax.Array, sums: Ref) -> None:
    """Adds a vector to a vector, or all tiles of a 3-dimensional array to one tile."""
    if x.ndim == 1:
        sums[pl.ds(0, x.shape[0])] += x
        return
    x = jnp.sum(x, axis=0)
    for row in range(0, x.shape[0], NUM_SUBLANES):
        for column in range(0, x.shape[1], NUM_LANES):
            tile = x[row : row + NUM_SUBLANES, column : column + NUM_LANES]
            sums[pl.ds(0, tile.shape[0]), pl.ds(0, tile.shape[1])] += tile
