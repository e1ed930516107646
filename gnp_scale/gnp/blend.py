"""The arithmetic of the method on trees of arrays: norms and blends, at least in float32."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels import Dots, Implementation
from gnp_kernels.trees import upcast

from gnp_scale.gnp import sharded_ops

type Tree = Any
type Scalar = float | jax.Array


class LinearCombination(NamedTuple):
    """u = c1 g1 + c2 g2, not yet added up: a fused update takes it instead of u."""

    c1: Scalar
    g1: Tree
    c2: Scalar
    g2: Tree
    """None if u is c1 g1."""

    def like(self, params: Tree) -> Tree:
        """u in the types of `params`; if c2 is 0, bitwise c1 g1 for any g2."""
        u = jax.tree.map(lambda x: self.c1 * upcast(x), self.g1)
        if self.g2 is not None:
            u = jax.tree.map(lambda x, y: jnp.where(self.c2 == 0, x, x + self.c2 * upcast(y)), u, self.g2)
        return jax.tree.map(lambda x, w: x.astype(w.dtype), u, params)


def norm(a: Tree, implementation: Implementation = "xla") -> jax.Array:
    """||a|| over all leaves."""
    return jnp.sqrt(sharded_ops.squared_norm(a, implementation=implementation))


def blend_weights(blend: str, alpha: Scalar, dots: Dots) -> tuple[Any, Any]:
    """The scalars (c1, c2) of the blend u = c1 g1 + c2 g2, from the inner products of g1 and g2.

    A norm of g1 that is not finite makes u NaN, so that the step is detected as bad.
    """
    g1_norm = jnp.sqrt(dots.a_a)
    match blend:
        case "paper":
            c1, c2 = 1 - alpha, alpha
        case "unit_norm":
            c1, c2 = ratio(1 - alpha, g1_norm), alpha
        case "gsam":
            c1, c2 = -alpha, 1 + alpha * ratio(dots.a_b, dots.b_b)
        case "decoupled":
            c1, c2 = 1.0, 0.0
        case _:
            raise AssertionError(blend)
    return c1, jnp.where(jnp.isfinite(g1_norm), c2, jnp.nan)


def weighted_sum(c1: Scalar, a: Tree, c2: Scalar, b: Tree) -> Tree:
    """c1 a + c2 b, leaf by leaf."""
    return jax.tree.map(lambda x, y: c1 * upcast(x) + c2 * upcast(y), a, b)


def ratio(a: Scalar, b: Scalar) -> jax.Array:
    """a / b, or 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))
