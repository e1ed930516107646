"""Metrics without extra cost: both gradients and their inner products exist already."""

from typing import Any

import jax
import jax.numpy as jnp
from gnp_kernels import Dots

from gnp_scale.gnp.blend import LinearCombination, Scalar, ratio
from gnp_scale.gnp.settings import Gnp


def combined_norm(c1: Scalar, c2: Scalar, dots: Dots) -> jax.Array:
    """||c1 g1 + c2 g2|| from the inner products, so that u is not read again; rounding must not make it negative."""
    return jnp.sqrt(jnp.maximum(c1**2 * dots.a_a + 2 * c1 * c2 * dots.a_b + c2**2 * dots.b_b, 0))


def geometry(gnp: Gnp, dots: Dots, r: Scalar, u: LinearCombination) -> dict[str, jax.Array]:
    """Metrics of the step from the inner products of g1 and g2."""
    norm1, norm2 = jnp.sqrt(dots.a_a), jnp.sqrt(dots.b_b)
    scalars = {
        "grad_norm": norm1,
        "grad_norm_perturbed": norm2,
        "update_grad_norm": combined_norm(u.c1, u.c2, dots),
        "cosine": ratio(dots.a_b, norm1 * norm2),
    }
    # g2 - g1 is r times the curvature along g1 only if eps is along g1, and both use the same examples.
    is_along = gnp.metric == "euclidean" and gnp.mask is None and gnp.direction != "friendly"
    if is_along and gnp.ascent_fraction == 1:
        scalars["curvature"] = ratio(ratio(dots.a_b, norm1) - norm1, r)
    return scalars


def strengths(r: Scalar, alpha: Scalar, is_on: Any) -> dict[str, jax.Array]:
    """How strong the penalty is at this step: 0 if it is off."""
    scalars = {"r": r, "alpha": alpha, "lambda": r * alpha, "on": 1.0}
    return {name: jnp.where(is_on, value, 0.0).astype(jnp.float32) for name, value in scalars.items()}


def used_radius(gnp: Gnp, length: Scalar, alpha: Scalar) -> dict[str, jax.Array]:
    """The length of eps in place of the setting r, if the gradient decides it."""
    if gnp.radius == "fixed":
        return {}
    return {name: jnp.asarray(value, jnp.float32) for name, value in (("r", length), ("lambda", alpha * length))}
