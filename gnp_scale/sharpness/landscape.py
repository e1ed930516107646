"""The loss in a plane through the parameters, along two random directions with filter normalisation.

A steps along each direction.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.sharpness.objective import Fixed, LossSum, Params, value
from gnp_scale.sharpness.spectrum import draw
from gnp_scale.training.leaves import kernel_axes, names_of


def direction(params: Params, is_free: Any, key: jax.Array) -> Params:
    """A random direction in which each filter has the norm of the filter of `params` (arXiv 1712.09913, section 4).

    A filter is all that one output channel of a kernel sums over. The direction is 0 in all other parameters, as in the
    paper's figures, and in frozen ones.
    """
    draws = draw(params, key, jax.random.normal)

    def normalised(path: Any, w: jax.Array, d: jax.Array, is_free: bool) -> jax.Array:
        names = names_of(path)
        if names[-1] != "kernel" or not is_free:
            return jnp.zeros_like(w)
        inputs = kernel_axes(names, w.ndim).inputs
        length_w, length_d = (jnp.sqrt(jnp.sum(x**2, axis=inputs, keepdims=True)) for x in (w, d))
        return d * length_w / length_d

    return jax.tree.map_with_path(normalised, params, draws, is_free)


def plane(
    loss_sum: LossSum,
    params: Params,
    fixed: Fixed,
    is_free: Any,
    key: jax.Array,
    step_A: np.ndarray,
    during: Callable[[], Any],
) -> np.ndarray:
    """The losses L(w + a d + b e) for all a and b in `step_A` (float32 A x A): a row for each b.

    `during` is a context for each row.
    """

    @jax.jit
    def row(params: Params, fixed: Fixed, key: jax.Array, b: jax.Array, step_A: jax.Array) -> jax.Array:
        d, e = (direction(params, is_free, jax.random.fold_in(key, number)) for number in range(2))
        params = _moved(params, b, e)
        return jax.lax.map(lambda a: value(loss_sum, _moved(params, a, d), fixed), step_A)

    rows = []
    for b in step_A:
        with during():
            rows.append(np.asarray(row(params, fixed, key, np.float32(b), step_A.astype(np.float32))))
    return np.stack(rows)


def _moved(params: Params, length: jax.Array, d: Params) -> Params:
    return jax.tree.map(lambda w, d: w + length * d, params, d)
