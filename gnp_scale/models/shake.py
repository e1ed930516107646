"""Random coefficients of residual branches: Shake-Shake (arXiv 1705.07485) and ShakeDrop (arXiv 1802.02375).

Each example draws its own from its key. Without keys, a coefficient is the mean of the published one in the forward
pass.

Shapes: B examples; `x_Bx` has any dimensions after the examples.
"""

from functools import partial

import jax
import jax.numpy as jnp

from gnp_scale.config.model import ShakeGradient


def shake_shake(x_Bx: jax.Array, y_Bx: jax.Array, key_B: jax.Array | None, gradient: ShakeGradient) -> jax.Array:
    """a x + (1 - a) y with a uniform in [0, 1]; without keys, (x + y) / 2.

    If `gradient` is "published", the backward pass has b in place of a, with the same distribution.
    """
    if key_B is None:
        return (x_Bx + y_Bx) / 2
    forward_B, backward_B = _uniform(key_B, 2)
    if gradient == "consistent":
        backward_B = forward_B
    return _scaled(x_Bx, forward_B, backward_B) + _scaled(y_Bx, 1 - forward_B, 1 - backward_B)


def shake_drop(x_Bx: jax.Array, rate: float, key_B: jax.Array | None, gradient: ShakeGradient) -> jax.Array:
    """a x with probability `rate`, for a uniform in [-1, 1], else x; without keys, (1 - rate) x.

    If `gradient` is "published", the backward pass has b uniform in [0, 1] in place of a.
    """
    if rate == 0:
        return x_Bx
    if key_B is None:
        return (1 - rate) * x_Bx
    gate_B, forward_B, backward_B = _uniform(key_B, 3)
    is_shaken_B, forward_B = gate_B < rate, 2 * forward_B - 1
    if gradient == "consistent":
        backward_B = forward_B
    return _scaled(x_Bx, jnp.where(is_shaken_B, forward_B, 1), jnp.where(is_shaken_B, backward_B, 1))


def _uniform(key_B: jax.Array, number: int) -> list[jax.Array]:
    return list(jax.vmap(partial(jax.random.uniform, shape=(number,)), out_axes=1)(key_B))


@jax.custom_jvp
def _scaled(x_Bx: jax.Array, forward_B: jax.Array, backward_B: jax.Array) -> jax.Array:
    """`forward x`, with the derivative `backward`. The coefficients have no derivatives."""
    del backward_B
    return x_Bx * _like(forward_B, x_Bx)


@_scaled.defjvp
def _scaled_jvp(
    primals: tuple[jax.Array, jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    x_Bx, forward_B, backward_B = primals
    dx_Bx, _, _ = tangents
    return _scaled(x_Bx, forward_B, backward_B), dx_Bx * _like(backward_B, x_Bx)


def _like(factor_B: jax.Array, x_Bx: jax.Array) -> jax.Array:
    return jnp.expand_dims(factor_B.astype(x_Bx.dtype), range(1, x_Bx.ndim))
