"""The perturbation in plain JAX."""

import jax
import jax.numpy as jnp

from gnp_kernels.trees import Scalar, Tree, wide


def perturb(
    params: Tree,
    grads: Tree,
    scale: Scalar,
    dtype: jax.typing.DTypeLike | None,
    adaptive: bool,
    mask: Tree,
    seed: jax.Array | None,
) -> Tree:
    """w + scale * g where `mask` is True; see `api.perturb`."""
    number_of = iter(range(len(jax.tree.leaves(params))))

    def moved(w: jax.Array, g: jax.Array, is_chosen: bool) -> jax.Array:
        number = next(number_of)
        out = jnp.dtype(w.dtype if dtype is None else dtype)
        if not is_chosen:
            return w.astype(out)
        step = wide(g) * jnp.abs(wide(w)) * jnp.abs(wide(w)) if adaptive else wide(g)
        x = wide(w) + scale * step
        if seed is None or out != jnp.bfloat16:
            return x.astype(out)
        return stochastic_bfloat16(x, random_bits(seed, number, x.shape))

    return jax.tree.map(moved, params, grads, mask)


def random_bits(seed: jax.Array, leaf: int, shape: tuple[int, ...]) -> jax.Array:
    """16 random bits for each element of an array, in uint32: a hash of seed, number of the leaf, and flat index."""
    index = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        index = index * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    return random_bits_at(index, seed, leaf)


def random_bits_at(index: jax.Array, seed: jax.Array, leaf: int) -> jax.Array:
    """The same at the places `index`, uint32: of an index only the low 32 bits count.

    The mixer is the 32-bit finaliser of MurmurHash3 (public domain), applied to the seed and leaf, and then to the
    index.
    """
    key = _mixed(seed.astype(jnp.uint32) ^ jnp.uint32(leaf * 0x9E3779B9 & 0xFFFFFFFF))
    return _mixed(index ^ key) >> 16


def _mixed(x: jax.Array) -> jax.Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def stochastic_bfloat16(x: jax.Array, bits: jax.Array) -> jax.Array:
    """float32 `x` rounded to bfloat16, away from 0 where its lower 16 bits plus `bits` carry."""
    raised = jax.lax.bitcast_convert_type(x, jnp.uint32) + bits
    truncated = jax.lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), truncated, x.astype(jnp.bfloat16))
