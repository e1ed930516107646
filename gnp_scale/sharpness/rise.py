"""How much the loss rises near a minimum: to the worst of an ascent step, over all examples and over small groups.

R radii, T groups of examples.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp_scale.gnp import Gnp
from gnp_scale.gnp.blend import norm
from gnp_scale.gnp.perturbation import perturb
from gnp_scale.sharpness.objective import Fixed, LossSum, Params, gradient, groups, value

_SAM = Gnp(alpha=1)


class Rise(NamedTuple):
    """Of a loss at w."""

    grad_norm: Any
    """||grad L(w)||."""
    rises: Any
    """L(w + r grad L / ||grad L||) - L(w) for each radius r."""


def worst_case(loss_sum: LossSum, params: Params, fixed: Fixed, radius_R: jax.Array) -> Rise:
    """The rise of the mean loss after one step of length r along its gradient, as in SAM (arXiv 2010.01412, eq. 2).

    To the first order in r this is the largest rise in a ball of radius r, so it is a lower bound of the largest rise.
    """
    grad = gradient(loss_sum, params, fixed)
    loss = value(loss_sum, params, fixed)

    def rise(r: jax.Array) -> jax.Array:
        return value(loss_sum, perturb(params, grad, r, _SAM).params, fixed) - loss

    rise_R = jax.lax.map(rise, radius_R)
    return Rise(norm(grad), rise_R)


def mean_over_groups(loss_sum: LossSum, params: Params, fixed: Fixed, radius_R: jax.Array) -> tuple[jax.Array, ...]:
    """m-sharpness (arXiv 2010.01412, section 4.2): the mean of the rises of the groups, each along its own gradient.

    Groups are the parts of `fixed`; those with fewer examples than the largest do not count: their m is another one.

    Returns:
        mean_R, error_R: the means, and their standard errors (NaN for one group).
    """
    size_T = jnp.sum(fixed.parts["mask"], axis=1)
    counts_T = size_T == jnp.max(size_T)

    def of_group(parts: Any) -> jax.Array:
        return worst_case(loss_sum, params, Fixed(fixed.shared, parts), radius_R).rises

    rise_TxR = jax.lax.map(of_group, groups(fixed).parts)
    num = jnp.sum(counts_T)
    mean_R = jnp.sum(jnp.where(counts_T[:, None], rise_TxR, 0.0), axis=0) / num
    square_R = jnp.sum(jnp.where(counts_T[:, None], (rise_TxR - mean_R[None]) ** 2, 0.0), axis=0)
    return mean_R, jnp.sqrt(square_R / (num - 1) / num)
