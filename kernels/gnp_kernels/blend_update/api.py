"""u = c1 g1 + c2 g2 and one step of SGD or AdamW with it, without writing u to memory."""

import jax

from gnp_kernels import dispatch
from gnp_kernels.blend_update.reference import AdamW, Coefficients, Options, Sgd, Updated
from gnp_kernels.dispatch import Implementation
from gnp_kernels.trees import Scalar, Shares, Tree, check_same_keys, check_same_structure

__all__ = ["AdamW", "Sgd", "Updated", "blend_update"]


def blend_update(
    params: Tree,
    g1: Tree,
    g2: Tree,
    moments: tuple[Tree, ...],
    *,
    rule: Sgd | AdamW,
    c1: Scalar,
    c2: Scalar = 0.0,
    learning_rate: Scalar,
    count: jax.typing.ArrayLike = 0,
    decay_mask: Tree = None,
    copy_dtype: jax.typing.DTypeLike | None = None,
    applies: jax.typing.ArrayLike = True,
    shares: Shares = None,
    implementation: Implementation = "auto",
) -> Updated:
    """w, moments -> w - learning_rate * (rule(u, moments) + weight_decay * w) with u = c1 g1 + c2 g2, in float32.

    The blend "paper" has c1 = 1 - alpha and c2 = alpha; "gsam" (arXiv 2203.08065) c1 = -alpha and c2 = 1 + alpha <g1,
    g2> / <g2, g2>. To clip u by its norm, multiply both by max_norm / ||u|| if that is below 1: ||u||^2 = c1^2 <g1, g1>
    + 2 c1 c2 <g1, g2> + c2^2 <g2, g2>.

    Args:
        params: float32 master parameters; the kernels overwrite them in place if the program allows it.
        g1: a tree like `params`, of float32 or bfloat16.
        g2: the same, or None for u = c1 g1. If c2 is 0 it is ignored, even if it is not finite.
        moments: float32 trees like `params`: (momentum,) for `Sgd`, () without momentum, (mean, square) for `AdamW`.
        rule: the base optimizer, with its constants.
        c1, c2, learning_rate: numbers or float32 scalars.
        count: number of updates before this one, for the bias corrections of AdamW.
        decay_mask: None, or a tree of bool like `params`: which parameters `rule.weight_decay` acts on.
        copy_dtype: if given, the new parameters are also returned in this type.
        applies: whether to make the step, a bool scalar; if False, parameters and moments stay bitwise unchanged, for
            any gradients.
        shares: None, or a factor for each leaf's part of the squared norms: 1 / (number of replicas of the leaf), if
            the results of several devices are added up.
        implementation: see `dispatch.choose`.

    Returns:
        `Updated`.

    Raises:
        ValueError: the trees do not fit each other, or the rule.
        UnsupportedError: no implementation fits.

    Example:
        >>> import jax.numpy as jnp
        >>> w, g1, g2 = jnp.array([1.0]), jnp.array([1.0]), jnp.array([2.0])
        >>> print(blend_update(w, g1, g2, (), rule=Sgd(), c1=0.5, c2=0.5, learning_rate=0.1).params)
        [0.85]
    """
    decay_mask = jax.tree.map(lambda _: True, params) if decay_mask is None else decay_mask
    check_same_structure(params=params, g1=g1, **{} if g2 is None else {"g2": g2})
    check_same_keys(params=params, decay_mask=decay_mask)
    if len(moments) != rule.num_moments:
        raise ValueError(
            f"{rule} keeps {rule.num_moments} moments. Got {len(moments)}. Pass a tuple of that many trees."
        )
    for moment in moments:
        check_same_structure(params=params, moment=moment)
    match dispatch.choose("blend_update", implementation, (params, g1, g2, moments)):
        case "pallas":
            from gnp_kernels.blend_update import pallas_tpu as module
        case "triton":
            from gnp_kernels.blend_update import triton as module
        case _:
            from gnp_kernels.blend_update import reference as module
    k = Coefficients.of(rule, c1, c2, learning_rate, count, applies)
    return module.blend_update(params, g1, g2, moments, k, Options(rule, decay_mask, copy_dtype, shares))
