"""Inner products in plain JAX."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gnp_kernels.trees import Shares, Tree, total, upcast


class Dots(NamedTuple):
    """The inner products of two trees, float32 scalars."""

    a_a: jax.Array
    a_b: jax.Array
    b_b: jax.Array


def squared_norm(tree: Tree, weights: Tree, shares: Shares) -> jax.Array:
    """Sum of a^2, or of (w a)^2."""
    if weights is not None:
        tree = jax.tree.map(lambda x, w: upcast(x) * upcast(w), tree, weights)
    return _dot(tree, tree, shares)


def dots(a: Tree, b: Tree, shares: Shares) -> Dots:
    """The three inner products."""
    return Dots(_dot(a, a, shares), _dot(a, b, shares), _dot(b, b, shares))


def _dot(a: Tree, b: Tree, shares: Shares) -> jax.Array:
    products = jax.tree.map(lambda x, y: jnp.sum(upcast(x) * upcast(y)), a, b)
    return total(jax.tree.leaves(products), shares)
