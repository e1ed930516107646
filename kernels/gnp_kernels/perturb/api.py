"""w + scale * g, or w + scale * w^2 g in the adaptive metric, in the compute type."""

import jax

from gnp_kernels import dispatch
from gnp_kernels.dispatch import Implementation
from gnp_kernels.trees import Scalar, Tree, check_same_keys, check_same_structure


def perturb(
    params: Tree,
    grads: Tree,
    scale: Scalar,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    adaptive: bool = False,
    mask: Tree = None,
    implementation: Implementation = "auto",
) -> Tree:
    """w + scale * g, computed in float32 and then rounded to nearest even in `dtype`.

    Args:
        params: the float32 master parameters; they are only read.
        grads: a tree like `params`, of float32 or bfloat16.
        scale: r / ||g||, a number or scalar; r / ||w g|| in the adaptive metric. NaN makes the result NaN.
        dtype: type of the result; None means the type of each parameter.
        adaptive: w + scale * w^2 g (ASAM, arXiv 2102.11600, with T = |w|).
        mask: None, or a tree of bool like `params`: where False, the result is w in the type `dtype`.
        implementation: see `dispatch.choose`.

    Returns:
        A tree like `params`.

    Raises:
        ValueError: the trees do not fit each other.
        UnsupportedError: no implementation fits.

    Example:
        >>> import jax.numpy as jnp
        >>> print(perturb(jnp.array([1.0, 2.0]), jnp.array([0.0, 1.0]), 0.5))
        [1.  2.5]
    """
    mask = jax.tree.map(lambda _: True, params) if mask is None else mask
    check_same_structure(params=params, grads=grads)
    check_same_keys(params=params, mask=mask)
    match dispatch.choose("perturb", implementation, (params, grads)):
        case "pallas":
            from gnp_kernels.perturb import pallas_tpu as module
        case "triton":
            from gnp_kernels.perturb import triton as module
        case _:
            from gnp_kernels.perturb import reference as module
    return module.perturb(params, grads, scale, dtype, adaptive, mask)
