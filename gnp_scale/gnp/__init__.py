"""Penalizing the gradient norm: the gradient of L(w) + lambda * ||grad L(w)||, with two passes.

The method of Zhao, Zhang and Hu (ICML 2022, arXiv 2202.03599), as a drop-in for `jax.value_and_grad`:

    g1  = grad L(w)
    eps = r * g1 / ||g1||                   one norm over all parameters
    g2  = grad L(w + eps)
    u   = (1 - alpha) * g1 + alpha * g2     alpha = lambda / r

which is g1 + lambda * H g1 / ||g1|| + O(r): a finite difference of radius r replaces the Hessian-vector product. alpha
= 1 is SAM (arXiv 2010.01412); alpha = 0 or r = 0 is plain training, in one pass. Variants of the method are other
values of `Gnp`. Norms, eps and u are computed at least in float32. Nothing here depends on the trainer.
"""

from gnp_scale.gnp.blend import LinearCombination
from gnp_scale.gnp.choices import Axes, NormGate, Schedule
from gnp_scale.gnp.drop_in import value_and_grad
from gnp_scale.gnp.gates import bernoulli, every, window
from gnp_scale.gnp.gradient import combine, penalize
from gnp_scale.gnp.optax_transform import penalize_updates
from gnp_scale.gnp.passes import Penalized
from gnp_scale.gnp.settings import Gnp, StepKind

__all__ = [
    "Axes",
    "Gnp",
    "LinearCombination",
    "NormGate",
    "Penalized",
    "Schedule",
    "StepKind",
    "bernoulli",
    "combine",
    "every",
    "penalize",
    "penalize_updates",
    "value_and_grad",
    "window",
]
