"""The loss in a plane through the parameters, along two random directions with filter normalisation.

A steps along each direction.
"""

from collections.abc import Callable, Sequence
from functools import partial
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

    def normalised(length_w: jax.Array, length_d: jax.Array, d: jax.Array) -> jax.Array:
        return jnp.where(length_w > 0, d * length_w / length_d, 0.0)

    lengths = (filter_norms(tree, is_free) for tree in (params, draws))
    return jax.tree.map(normalised, *lengths, draws)


def filter_norms(params: Params, is_free: Any) -> Params:
    """The norm of each filter, with axes of length 1 for what it sums over; 0 for frozen parameters and for those that
    are no kernels.
    """

    def norms(path: Any, w: jax.Array, is_free: bool) -> jax.Array:
        names = names_of(path)
        if names[-1] != "kernel" or not is_free:
            return jnp.zeros((1,) * w.ndim, w.dtype)
        return jnp.sqrt(jnp.sum(w**2, axis=kernel_axes(names, w.ndim).inputs, keepdims=True))

    return jax.tree.map_with_path(norms, params, is_free)


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
    draw_both = jax.jit(lambda params, key: [direction(params, is_free, jax.random.fold_in(key, n)) for n in range(2)])
    return surface(partial(value, loss_sum), params, draw_both(params, key), np.stack([step_A, step_A]), fixed, during)


def surface[Data](
    loss_of: Callable[[Params, Data], jax.Array],
    params: Params,
    directions: Sequence[Params],
    steps_2xA: np.ndarray,
    data: Data,
    during: Callable[[], Any],
) -> np.ndarray:
    """The losses `loss_of(w + a d + b e, data)` (float32) along two directions: a row for each b, a column for each a.

    `during` is a context for each row.
    """

    @jax.jit
    def row(params: Params, directions: Sequence[Params], data: Data, b: jax.Array, step_A: jax.Array) -> jax.Array:
        d, e = directions
        params = _moved(params, b, e)
        return jax.lax.map(lambda a: loss_of(_moved(params, a, d), data), step_A)

    rows = []
    for b in steps_2xA[1]:
        with during():
            rows.append(np.asarray(row(params, directions, data, np.float32(b), steps_2xA[0].astype(np.float32))))
    return np.stack(rows)


def _moved(params: Params, length: jax.Array, d: Params) -> Params:
    return jax.tree.map(lambda w, d: w + length * d, params, d)
