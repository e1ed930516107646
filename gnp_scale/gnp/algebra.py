"""The arithmetic of the method on trees of arrays: norms, perturbations and blends, in float32 at least."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

type Tree = Any
type Scalar = float | jax.Array


class Dots(NamedTuple):
    """The inner products of the two gradients, over all parameters."""

    g1_g1: jax.Array
    g1_g2: jax.Array
    g2_g2: jax.Array


def dot(a: Tree, b: Tree) -> jax.Array:
    """<a, b> over all leaves of two trees; a scalar, the same on every device."""
    products = jax.tree.map(lambda x, y: jnp.sum(wide(x) * wide(y)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), jnp.float32))


def norm(a: Tree) -> jax.Array:
    """||a|| over all leaves."""
    return jnp.sqrt(dot(a, a))


def perturb(
    params: Tree, direction: Tree, r: Scalar, *, adaptive: bool = False, mask: Callable[[str], bool] | None = None
) -> Tree:
    """w + r * d / ||d||, added in float32 at least and then cast to the type of w; w itself where d is 0.

    With `adaptive`, w + r * w^2 d / ||w d||. Parameters that `mask` leaves out stay, and do not count in the norm.
    A norm that is not finite makes the perturbed ones NaN.

    Raises:
        ValueError: `mask` chooses no parameter.
    """
    chosen = jax.tree.map_with_path(lambda path, _: mask is None or mask(path_name(path)), params)
    if mask is not None and not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "The mask of a penalty chooses at least one parameter. "
            f"Got one that is False for all of {_names(params)}. Give another mask, or none."
        )

    def ascent(w: jax.Array, d: jax.Array, is_chosen: bool) -> jax.Array | None:
        if not is_chosen:
            return None
        return wide(d) * jnp.abs(wide(w)) if adaptive else wide(d)

    steps = jax.tree.map(ascent, params, direction, chosen)
    length = norm(steps)
    scale = jnp.where(jnp.isfinite(length), ratio(r, length), jnp.nan)

    def moved(w: jax.Array, step: jax.Array | None) -> jax.Array:
        if step is None:
            return w
        step = step * jnp.abs(wide(w)) if adaptive else step
        return (wide(w) + scale * step).astype(w.dtype)

    return jax.tree.map(moved, params, steps)


def blend_weights(blend: str, alpha: Scalar, dots: Dots) -> tuple[Any, Any]:
    """The scalars (c1, c2) with which the blend u = c1 g1 + c2 g2.

    A norm of g1 that is not finite makes u NaN, so that no wrong step stays unseen.
    """
    g1_norm = jnp.sqrt(dots.g1_g1)
    match blend:
        case "paper":
            c1, c2 = 1 - alpha, alpha
        case "unit_norm":
            c1, c2 = ratio(1 - alpha, g1_norm), alpha
        case "gsam":
            c1, c2 = -alpha, 1 + alpha * ratio(dots.g1_g2, dots.g2_g2)
        case "decoupled":
            c1, c2 = 1.0, 0.0
        case _:
            raise AssertionError(blend)
    return c1, jnp.where(jnp.isfinite(g1_norm), c2, jnp.nan)


def weighted_sum(c1: Scalar, a: Tree, c2: Scalar, b: Tree) -> Tree:
    """c1 a + c2 b, leaf by leaf, in the types of a."""
    return jax.tree.map(lambda x, y: (c1 * wide(x) + c2 * wide(y)).astype(x.dtype), a, b)


def ratio(a: Scalar, b: Scalar) -> jax.Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def wide(x: jax.Array) -> jax.Array:
    """`x` in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def path_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf as text, its keys separated by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _names(tree: Tree) -> str:
    return ", ".join(path_name(path) for path, _ in jax.tree.leaves_with_path(tree))
