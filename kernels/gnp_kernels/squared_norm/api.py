"""||a||^2, and the three inner products of two trees."""

import jax

from gnp_kernels import dispatch
from gnp_kernels.dispatch import Implementation
from gnp_kernels.squared_norm.reference import Dots
from gnp_kernels.trees import Shares, Tree, check_same_structure

__all__ = ["Dots", "dots", "squared_norm"]


def squared_norm(
    tree: Tree, *, weights: Tree = None, shares: Shares = None, implementation: Implementation = "auto"
) -> jax.Array:
    """||a||^2 over all leaves, or sum (w a)^2 with `weights`, for the adaptive metric.

    Args:
        tree: float32 or bfloat16 arrays of any shapes.
        weights: None, or a tree like `tree`.
        shares: None, or a factor for the sum of each leaf: 1 / (number of replicas of the leaf), if the results of
            several devices are added up.
        implementation: see `dispatch.choose`.

    Returns:
        A float32 scalar (float64 if the reference gets float64), accumulated in that type. The relative error grows
        with the logarithm of the number of elements, because every implementation sums blocks. 0 for a tree without
        leaves.

    Raises:
        ValueError: the trees do not fit each other.
        UnsupportedError: no implementation fits.

    Example:
        >>> import jax.numpy as jnp
        >>> print(squared_norm({"kernel": jnp.array([3.0, 4.0])}))
        25.0
    """
    if weights is not None:
        check_same_structure(tree=tree, weights=weights)
    return _module("squared_norm", implementation, (tree, weights)).squared_norm(tree, weights, shares)


def dots(a: Tree, b: Tree, *, shares: Shares = None, implementation: Implementation = "auto") -> Dots:
    """(<a, a>, <a, b>, <b, b>) over all leaves, in one pass over both trees; otherwise as `squared_norm`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(*dots(jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])))
        5.0 3.0 9.0
    """
    check_same_structure(a=a, b=b)
    return _module("dots", implementation, (a, b)).dots(a, b, shares)


def _module(op: str, implementation: Implementation, trees: Tree):
    # No return type here: the type checker infers the possible modules.
    match dispatch.choose(op, implementation, trees):
        case "pallas":
            from gnp_kernels.squared_norm import pallas_tpu as module
        case "triton":
            from gnp_kernels.squared_norm import triton as module
        case _:
            from gnp_kernels.squared_norm import reference as module
    return module
