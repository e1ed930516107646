"""How one Pallas call processes each of its leaves in the fast memory (VMEM) of a TPU core."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gnp_kernels.pallas_views import NUM_LANES, NUM_SUBLANES, TILE, View, padded_size

NUM_FETCHED, NUM_WRITTEN = 4, 2
"""Chunks of inputs and results in VMEM at a time: powers of 2, because the position of a chunk is a remainder."""
STREAM_BYTES, WHOLE_BYTES, WHOLE_LEAF_BYTES = 6 << 20, 8 << 20, 4 << 20
"""VMEM for chunks, whole leaves, and one of these: in all less than 16 MiB, the smallest default limit of all chips."""
MIN_STREAMED_TILES, MIN_CHUNK_TILES = 16, 8
STEP_CYCLES, GROUP_CYCLES = 64, 10
"""The overhead of a chunk, and of each group of tiles in it, as the compiler schedules them."""
BLOCK_REGISTERS = 32
"""Of the 64 vector registers, those for the inputs, results and sums of one block."""


class Streamed(NamedTuple):
    """A leaf that is streamed in chunks; each core processes its own tiles of each chunk."""

    leaf: int
    first: int
    """Number of a core's chunks before those of this leaf."""
    num_chunks: int
    num_tiles: int
    """A core's tiles in a chunk."""
    num_unrolled: int
    """Tiles that are computed together."""


class Blocks(NamedTuple):
    """Consecutive blocks of a leaf along one dimension."""

    num: int
    dim: int
    starts: tuple[int, ...]
    """Start of the first block, for each dimension."""
    shape: tuple[int, ...]
    """Shape of one block."""


@dataclass(frozen=True)
class Plan:
    """The leaves of one call; all have the same types of inputs and results."""

    shapes: tuple[tuple[int, ...], ...]
    in_dtypes: tuple[jnp.dtype, ...]
    out_dtypes: tuple[jnp.dtype, ...]
    sources: tuple[int | None, ...]
    """For each result, the input that it overwrites, if any."""
    num_sums: int
    num_cores: int = 1

    @cached_property
    def views(self) -> tuple[View, ...]:
        """How the kernel sees the leaves."""
        return tuple(map(View, self.shapes))

    @cached_property
    def streamed(self) -> tuple[Streamed, ...]:
        """The leaves that consist of complete tiles and are large enough."""
        found, first = [], 0
        for leaf, view in enumerate(self.views):
            if (num_tiles := self._chunk_tiles(view)) is not None:
                num_chunks = view.num_tiles // (self.num_cores * num_tiles)
                found.append(Streamed(leaf, first, num_chunks, num_tiles, self._num_unrolled(num_tiles)))
                first += num_chunks
        return tuple(found)

    @cached_property
    def whole(self) -> tuple[int, ...]:
        """The leaves that VMEM holds whole, as many as fit."""
        kept, num_bytes = [], 0
        streamed = {leaf.leaf for leaf in self.streamed}
        for leaf, view in enumerate(self.views):
            size = self.whole_bytes(view)
            if leaf not in streamed and 0 < size <= min(WHOLE_LEAF_BYTES, WHOLE_BYTES - num_bytes):
                kept.append(leaf)
                num_bytes += size
        return tuple(kept)

    @property
    def kept(self) -> list[int]:
        """The leaves that this call processes; the others need another call."""
        return sorted({leaf.leaf for leaf in self.streamed} | set(self.whole))

    @cached_property
    def num_chunks(self) -> int:
        """Chunks of a core."""
        return sum(leaf.num_chunks for leaf in self.streamed)

    def as_operand(self, leaf: int, x: jax.Array) -> jax.Array:
        """A leaf as the kernel receives it: as tiles if it is streamed, else as stored."""
        return self.views[leaf].as_stored(x) if leaf in self.whole else self.views[leaf].as_tiles(x)

    def from_operand(self, leaf: int, x: jax.Array) -> jax.Array:
        """Undoes `as_operand`."""
        return self.views[leaf].from_stored(x) if leaf in self.whole else self.views[leaf].from_tiles(x)

    def whole_bytes(self, view: View) -> int:
        """VMEM for all inputs and results of one leaf."""
        new = [dtype for dtype, source in zip(self.out_dtypes, self.sources, strict=True) if source is None]
        return padded_size(view.stored) * sum(jnp.dtype(dtype).itemsize for dtype in (*self.in_dtypes, *new))

    def chunks(self, leaf: Streamed, lowest: int, highest: int) -> Iterator[tuple[Streamed, int, bool, bool]]:
        """Finds the chunks `lowest` to `highest`, counted from the first of `leaf`.

        Yields each leaf that holds some of them, its start relative to `leaf`, and whether some are before and after.
        """
        for other in self.streamed:
            start = other.first - leaf.first
            if start <= highest and start + other.num_chunks > lowest:
                yield other, start, lowest < start, highest >= start + other.num_chunks

    def blocks(self, leaf: int) -> Iterator[Blocks]:
        """The blocks of a leaf that VMEM holds whole; they are computed one at a time."""
        if len(self.views[leaf].stored) == 1:
            for num, start, size in _runs(self.views[leaf].stored[0], self.num_registers * math.prod(TILE)):
                yield Blocks(num, 0, (start,), (size,))
            return
        num_majors, num_rows, num_columns = self.views[leaf].stored
        tiles_in_row = min(-(-num_columns // NUM_LANES), self.num_registers)
        tiles_in_column = min(-(-num_rows // NUM_SUBLANES), self.num_registers // tiles_in_row)
        depth = _divisor(num_majors, self.num_registers // (tiles_in_row * tiles_in_column))
        for column, width in _pieces(num_columns, tiles_in_row * NUM_LANES):
            for num, row, height in _runs(num_rows, tiles_in_column * NUM_SUBLANES):
                if num_majors == 1:
                    yield Blocks(num, 1, (0, row, column), (1, height, width))
                    continue
                for place in range(num):
                    yield Blocks(num_majors // depth, 0, (0, row + place * height, column), (depth, height, width))

    @property
    def num_registers(self) -> int:
        """Registers for one input of a block."""
        return max(1, BLOCK_REGISTERS // (len(self.in_dtypes) + len(self.out_dtypes) + self.num_sums))

    def _chunk_tiles(self, view: View) -> int | None:
        if view.num_tiles < MIN_STREAMED_TILES or view.num_tiles % self.num_cores:
            return None
        num_tiles = view.num_tiles // self.num_cores
        sizes = [n for n in range(MIN_CHUNK_TILES, min(self._max_tiles, num_tiles) + 1) if num_tiles % n == 0]
        return min(sizes, key=lambda n: STEP_CYCLES / n + GROUP_CYCLES / self._num_unrolled(n), default=None)

    @property
    def _max_tiles(self) -> int:
        bytes_in, bytes_out = (sum(jnp.dtype(t).itemsize for t in types) for types in (self.in_dtypes, self.out_dtypes))
        return STREAM_BYTES // (math.prod(TILE) * (NUM_FETCHED * bytes_in + NUM_WRITTEN * bytes_out))

    def _num_unrolled(self, num_tiles: int) -> int:
        return _divisor(num_tiles, self.num_registers)


def _divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return max(n for n in range(1, min(most, number) + 1) if number % n == 0)


def _pieces(size: int, step: int) -> Iterator[tuple[int, int]]:
    """Start and size of pieces of size `step`, and of the remainder."""
    for start in range(0, size, step):
        yield start, min(step, size - start)


def _runs(size: int, step: int) -> Iterator[tuple[int, int, int]]:
    """The same pieces, grouped by size: their number, the first start, and the size."""
    if size >= step:
        yield size // step, 0, step
    if size % step:
        yield 1, size - size % step, size % step
