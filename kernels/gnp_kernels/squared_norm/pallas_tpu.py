"""Inner products as Pallas kernels for TPUs."""

from functools import partial
from typing import Any

import jax

from gnp_kernels.pallas_leaves import map_leaves
from gnp_kernels.pallas_stream import Block
from gnp_kernels.squared_norm.reference import Dots
from gnp_kernels.trees import Shares, Tree, share, upcast


def squared_norm(tree: Tree, weights: Tree, shares: Shares) -> jax.Array:
    """Sum of a^2, or of (w a)^2."""
    columns = [jax.tree.leaves(tree)] + ([] if weights is None else [jax.tree.leaves(weights)])
    return map_leaves("gnp_squared_norm", partial(_square, shares), columns, [], num_sums=1).sums[0]


def dots(a: Tree, b: Tree, shares: Shares) -> Dots:
    """The three inner products."""
    columns = [jax.tree.leaves(a), jax.tree.leaves(b)]
    return Dots(*map_leaves("gnp_dots", partial(_products, shares), columns, [], num_sums=3).sums)


def _square(shares: Shares, block: Block, a: jax.Array, w: jax.Array | None = None) -> tuple[Any, Any]:
    x = upcast(a) if w is None else upcast(a) * upcast(w)
    return (), (share(shares, block.leaf) * (x * x),)


def _products(shares: Shares, block: Block, a: jax.Array, b: jax.Array) -> tuple[Any, Any]:
    a, b, factor = upcast(a), upcast(b), share(shares, block.leaf)
    return (), (factor * (a * a), factor * (a * b), factor * (b * b))
