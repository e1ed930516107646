"""Parts of an optimizer that need to know the layers of the network: from optax, for the kernels of this project."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from gnp_scale.config import OptimConfig
from gnp_scale.training.leaves import Axes, is_stacked, kernel_axes, layer_factors, names_of

ADAFACTOR_DECAY = 0.8  # arXiv 1804.04235, section 7.2
ADAFACTOR_LEAST_DIM = 32
"""Smallest size of two axes whose second moments are factored; as in big_vision."""
MUON_RMS = 0.2
"""Root of the mean square of an update before the learning rate, which is then one of AdamW (arXiv 2502.16982)."""
_NOT_HIDDEN = ("embed", "patches", "conv", "head")
"""The stem and the head."""


def moment_dtype(config: OptimConfig) -> str | None:
    """Type of first moments, if it is not that of the parameters."""
    return None if config.moment_dtype == "float32" else config.moment_dtype


def on_auto_axes(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform`, for which XLA chooses the shardings inside; updates and state keep theirs."""

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        if jax.sharding.get_abstract_mesh().empty:
            return transform.update(updates, state, params)
        shardings = jax.tree.map(lambda x: jax.typeof(x).sharding, (updates, state))
        run: Any = jax.sharding.auto_axes(transform.update, out_sharding=shardings)
        return run(updates, state, params)

    return optax.GradientTransformation(transform.init, update)


def adaptive_clipping(share: float) -> optax.GradientTransformation:
    """Adaptive gradient clipping (arXiv 2102.06171, equation 3): the gradient of a unit has at most `share` times the
    norm of its parameters.

    A unit of a kernel is all that one output sums over; the units of a vector are the whole of it, as in optax. The
    head is not clipped (section 4.1).
    """

    def clipped(path: Any, grad: jax.Array, w: jax.Array) -> Any:
        names = names_of(path)
        if names[0] == "head":
            return grad
        all_axes = tuple(range(is_stacked(names), grad.ndim))
        axes = kernel_axes(names, grad.ndim).inputs if names[-1] == "kernel" else all_axes
        return optax.adaptive_grad_clip(share, axis=axes).update(grad, optax.EmptyState(), w)[0]

    return on_auto_axes(optax.stateless(partial(jax.tree.map_with_path, clipped)))


def by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies updates by `layer_factors`."""

    def scale(updates: Any, params: Any) -> Any:
        return jax.tree.map(lambda change, factor: factor * change, updates, layer_factors(updates, decay))

    return optax.stateless(scale)


def adafactor(config: OptimConfig) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) as in arXiv 2106.04560, section 3.4: without the scale of the parameters and without
    clipping; the decay of the second moment at step t is min(1 - t^-0.8, b2), and that of the momentum b1.
    """

    def decay_rate(step: Any, exponent: Any) -> jax.Array:
        return jnp.minimum(config.b2, 1.0 - (jnp.asarray(step, jnp.float32) + 1.0) ** -exponent)

    second = optax.scale_by_factored_rms(
        decay_rate=ADAFACTOR_DECAY, min_dim_size_to_factor=ADAFACTOR_LEAST_DIM, decay_rate_fn=decay_rate
    )
    first = optax.ema(config.b1, debias=False, accumulator_dtype=moment_dtype(config))
    return optax.chain(on_auto_axes(second), first)


def muon(config: OptimConfig) -> optax.GradientTransformation:
    """Muon (kellerjordan.github.io/posts/muon) for the kernels of hidden layers, and Adam for all other parameters.

    The momentum of a kernel becomes, nearly, the orthogonal matrix next to it, times 0.2 sqrt(max(inputs, outputs)).
    Queries, keys and values are three matrices, each with all its heads; a convolution is one, whose inputs are those
    of all its pixels; stacked blocks have one each. Depthwise convolutions, the stem and the head have Adam.
    """
    hidden = contrib.scale_by_muon(
        beta=config.momentum,
        mu_dtype=moment_dtype(config),
        nesterov=config.nesterov,
        weight_dimension_numbers=_dimension_numbers,
    )
    others = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=moment_dtype(config))
    scaled = optax.chain(hidden, optax.stateless(_scaled_for_shape))
    return on_auto_axes(optax.partition({"muon": scaled, "adam": others}, _labels))


def _labels(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, w: "muon" if _is_hidden(names_of(path), w) else "adam", params)


def _is_hidden(names: tuple[str, ...], w: jax.Array) -> bool:
    """Whether the parameter is a kernel between the stem and the head that has several inputs for each pixel."""
    if names[-1] != "kernel" or names[0] in _NOT_HIDDEN:
        return False
    inputs = kernel_axes(names, w.ndim).inputs
    return len(inputs) != 3 or w.shape[inputs[-1]] > 1


def _dimension_numbers(updates: Any) -> Any:
    def numbers(path: Any, update: jax.Array) -> contrib.MuonDimensionNumbers:
        axes: Axes = kernel_axes(names_of(path), update.ndim)
        return contrib.MuonDimensionNumbers(axes.inputs, axes.outputs)

    return jax.tree.map_with_path(numbers, updates)


def _scaled_for_shape(updates: Any, params: Any) -> Any:
    def scaled(path: Any, update: jax.Array) -> jax.Array:
        axes = kernel_axes(names_of(path), update.ndim)
        largest = max(math.prod(update.shape[axis] for axis in group) for group in axes)
        return update * (MUON_RMS * largest**0.5)

    return jax.tree.map_with_path(scaled, updates)
