"""w + eps: the perturbation along a direction, in every metric and with every radius."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels import Implementation
from gnp_kernels.trees import path_name, upcast

from gnp_scale.gnp import sharded_ops
from gnp_scale.gnp.blend import Scalar, Tree, ratio
from gnp_scale.gnp.settings import Gnp


class Perturbed(NamedTuple):
    """The parameters w + eps, and the length of eps: with "layerwise" in a layer with as many inputs as outputs."""

    params: Tree
    length: Scalar


def perturb(
    params: Tree,
    direction: Tree,
    r: Scalar,
    gnp: Gnp,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    implementation: Implementation = "xla",
) -> Perturbed:
    """w + r * d / ||d|| in the metric of `gnp`, added at least in float32 and then cast to `dtype`.

    The default of `dtype` is the type of w. The result is w where d is 0. Parameters outside the mask do not change,
    and do not count in the norm. A norm that is not finite makes the perturbed ones NaN.

    Raises:
        ValueError: the mask selects no parameter, or one that is narrower than float32.
    """
    chosen = jax.tree.map_with_path(lambda path, _: gnp.mask is None or gnp.mask(path_name(path)), params)
    if gnp.mask is not None and not any(jax.tree.leaves(chosen)):
        raise ValueError(
            "The mask of a penalty must select at least one parameter. "
            f"Got one that is False for all of {_names(params)}. Give another mask, or none."
        )
    _check_wide(params, chosen)
    if gnp.metric == "layerwise":
        return Perturbed(_perturb_layers(params, direction, r, gnp.axes, chosen, dtype), r)
    adaptive = gnp.metric == "adaptive"
    d, w = (jax.tree.map(lambda x, is_chosen: x if is_chosen else None, tree, chosen) for tree in (direction, params))
    norm = jnp.sqrt(sharded_ops.squared_norm(d, w if adaptive else None, implementation=implementation))
    length = gnp.length_of(r, norm)
    scale = jnp.where(jnp.isfinite(norm), ratio(length, norm), jnp.nan)
    moved = sharded_ops.perturb(
        params, direction, scale, adaptive=adaptive, mask=chosen, dtype=dtype, implementation=implementation
    )
    return Perturbed(moved, length)


@jax.named_scope("gnp_perturb")
def _perturb_layers(params: Tree, direction: Tree, r: Scalar, axes_of: Any, chosen: Tree, dtype: Any) -> Tree:
    """w + r sqrt(outputs / inputs) d / ||d|| for each layer, in plain JAX."""

    def move(path: Any, w: jax.Array, d: jax.Array, is_chosen: bool) -> jax.Array:
        if not is_chosen:
            return w.astype(dtype or w.dtype)
        axes, d = axes_of(path_name(path), w.shape), upcast(d)
        norm = jnp.sqrt(jnp.sum(jnp.square(d), axis=(*axes.inputs, *axes.outputs), keepdims=True))
        length = r * math.sqrt(_number(w, axes.outputs) / _number(w, axes.inputs))
        scale = jnp.where(jnp.isfinite(norm), ratio(length, norm), jnp.nan)
        return (upcast(w) + scale * d).astype(dtype or w.dtype)

    return jax.tree.map_with_path(move, params, direction, chosen)


def _number(w: jax.Array, axes: Any) -> int:
    return math.prod(w.shape[axis] for axis in axes)


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


def _names(tree: Tree) -> str:
    return ", ".join(path_name(path) for path, _ in jax.tree.leaves_with_path(tree))
