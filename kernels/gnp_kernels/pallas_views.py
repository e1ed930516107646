"""Views of an array that move no data on a TPU: as a list of hardware tiles if it consists of complete tiles.

A TPU stores the two minor dimensions of an array in tiles of 8 x 128, with padding if they do not fit. XLA orders the
dimensions of a program's arguments to minimise the padding. A view transposes an array to that order and reshapes it
without splitting tiles, so the compiler turns the view into a bitcast.
"""

import itertools
import math
from dataclasses import dataclass

import jax

NUM_SUBLANES, NUM_LANES = 8, 128
TILE = (NUM_SUBLANES, NUM_LANES)


@dataclass(frozen=True)
class View:
    """How the kernels see an array of `shape`."""

    shape: tuple[int, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """The dimensions from major to minor, as XLA stores them: the first order with the least padding."""
        num_dims = len(self.shape)
        if num_dims < 2:
            return tuple(range(num_dims))
        orders = []
        for minor, second in itertools.permutations(reversed(range(num_dims)), 2):
            others = [dim for dim in range(num_dims) if dim not in (minor, second)]
            orders.append((*others, second, minor))
        return min(orders, key=lambda order: padded_size([self.shape[dim] for dim in order]))

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape in that order, with the leading dimensions merged: a vector, or 3 dimensions, 2 of them tiled."""
        shape = [self.shape[dim] for dim in self.order]
        if len(shape) < 2:
            return tuple(shape) or (1,)
        *majors, num_rows, num_columns = shape
        if num_rows % NUM_SUBLANES == 0:
            majors, num_rows = [*majors, num_rows // NUM_SUBLANES], NUM_SUBLANES
        return (math.prod(majors), num_rows, num_columns)

    @property
    def num_tiles(self) -> int:
        """Number of tiles if the array consists of complete tiles, else 0."""
        if len(self.stored) == 1:
            return 0 if self.stored[0] % math.prod(TILE) else self.stored[0] // math.prod(TILE)
        num_rows, num_columns = self.stored[1:]
        is_whole = num_rows == NUM_SUBLANES and num_columns % NUM_LANES == 0
        return math.prod(self.shape) // math.prod(TILE) if is_whole else 0

    def as_stored(self, x: jax.Array) -> jax.Array:
        """`x` of `shape` as an array of shape `stored`."""
        return x.transpose(self.order).reshape(self.stored)

    def as_tiles(self, x: jax.Array) -> jax.Array:
        """`x` of `shape` as an array (num_tiles, 8, 128); a vector fills the tiles row by row."""
        x = self.as_stored(x)
        if x.ndim == 3:
            x = x.reshape(x.shape[0], NUM_SUBLANES, -1, NUM_LANES).transpose(0, 2, 1, 3)
        return x.reshape(-1, *TILE)

    def from_stored(self, x: jax.Array) -> jax.Array:
        """Undoes `as_stored`."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        return x.reshape([self.shape[dim] for dim in self.order]).transpose(inverse)

    def from_tiles(self, x: jax.Array) -> jax.Array:
        """Undoes `as_tiles`."""
        if len(self.stored) == 3:
            x = x.reshape(self.stored[0], -1, *TILE).transpose(0, 2, 1, 3)
        return self.from_stored(x)


def padded_size(stored: tuple[int, ...] | list[int]) -> int:
    """Number of elements of an array of this shape, with padding."""
    if len(stored) < 2:
        return _up(math.prod(stored), NUM_LANES if math.prod(stored) <= NUM_LANES else math.prod(TILE))
    *majors, num_rows, num_columns = stored
    sublanes = next(n for n in (1, 2, 4, NUM_SUBLANES) if n >= min(num_rows, NUM_SUBLANES))
    return math.prod(majors) * _up(num_rows, sublanes) * _up(num_columns, NUM_LANES)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
