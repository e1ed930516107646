"""Kernels rounded to few bits, as in a network for inference."""

from typing import Any

import jax
import jax.numpy as jnp

from gnp_scale.sharpness.objective import Params
from gnp_scale.training.leaves import kernel_axes, names_of


def rounded(params: Params, num_bits: int) -> Params:
    """The kernels rounded to nearest, symmetrically about 0, with a scale for each output channel.

    With n = 2^(num_bits - 1) - 1 and s = max |w| / n over a channel, a weight becomes s * round(w / s), which has
    2 n + 1 possible values. Other parameters stay as they are (arXiv 1806.08342, sections 2.2 and 3.1.3).
    """
    highest = 2 ** (num_bits - 1) - 1

    def of_leaf(path: Any, w: jax.Array) -> jax.Array:
        names = names_of(path)
        if names[-1] != "kernel":
            return w
        scale = jnp.max(jnp.abs(w), axis=kernel_axes(names, w.ndim).inputs, keepdims=True) / highest
        return jnp.where(scale > 0, scale * jnp.round(w / jnp.where(scale > 0, scale, 1.0)), 0.0)

    return jax.tree.map_with_path(of_leaf, params)
