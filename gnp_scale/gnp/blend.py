"""The arithmetic of the method on trees of arrays: norms, perturbations and blends, at least in float32."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels import Dots, Implementation
from gnp_kernels.trees import path_name, upcast

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


def perturb(
    params: Tree,
    direction: Tree,
    r: Scalar,
    *,
    adaptive: bool = False,
    mask: Callable[[str], bool] | None = None,
    dtype: jax.typing.DTypeLike | None = None,
    implementation: Implementation = "xla",
) -> Tree:
    """w + r * d / ||d||, added at least in float32 and then cast to `dtype` (default: that of w); w where d is 0.

    With `adaptive`, w + r * w^2 d / ||w d||. Parameters outside `mask` do not change, and do not count in the norm. A
    norm that is not finite makes the perturbed ones NaN.

    Raises:
        ValueError: `mask` selects no parameter, or one that is narrower than float32.
    """
    chosen = jax.tree.map_with_path(lambda path, _: mask is None or mask(path_name(path)), params)
    if mask is not None and not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "The mask of a penalty must select at least one parameter. "
            f"Got one that is False for all of {_names(params)}. Give another mask, or none."
        )
    _check_wide(params, chosen)
    d, w = (jax.tree.map(lambda x, is_chosen: x if is_chosen else None, tree, chosen) for tree in (direction, params))
    length = jnp.sqrt(sharded_ops.squared_norm(d, w if adaptive else None, implementation=implementation))
    scale = jnp.where(jnp.isfinite(length), ratio(r, length), jnp.nan)
    return sharded_ops.perturb(
        params, direction, scale, adaptive=adaptive, mask=chosen, dtype=dtype, implementation=implementation
    )


def _check_wide(params: Tree, chosen: Tree) -> None:
    """Raises ValueError if the type of a perturbed parameter cannot hold w + eps.

    In a narrow type most entries of eps are smaller than half the distance from w to the next number, so rounding to
    nearest gives w again: with 22 million bfloat16 parameters and r = 0.05 a fifth of the perturbation is left. The low
    bits of a float32 w decide, without bias, which entries of its bfloat16 copy move.
    """
    for (path, w), is_chosen in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(chosen), strict=True):
        if is_chosen and jnp.finfo(w.dtype).bits < 32:
            raise ValueError(
                "Perturbed parameters must be at least float32: a narrower type rounds most of w + eps back to w. "
                f"Got {w.dtype} at {path_name(path) or 'the only one'}. Keep the parameters in float32 and cast them "
                "in the loss, or exclude these by a mask."
            )


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


def _names(tree: Tree) -> str:
    return ", ".join(path_name(path) for path, _ in jax.tree.leaves_with_path(tree))
