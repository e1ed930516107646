"""The method as an optax transformation, for loops that are built around optax chains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from gnp_kernels import dots

from gnp_scale.gnp.blend import LinearCombination, Tree, blend_weights
from gnp_scale.gnp.perturbation import perturb
from gnp_scale.gnp.settings import Gnp


class PenalizeState(NamedTuple):
    """The number of updates so far, for schedules and gates; int32 scalar."""

    count: jax.Array


def penalize_updates(gnp: Gnp) -> optax.GradientTransformationExtraArgs:
    """Turns a gradient g1 into u; put it first in an `optax.chain`, before clipping and the optimizer.

    `update(g1, state, params, grad_fn=...)`, where `grad_fn(params)` is the gradient on the same examples, with the
    same masks. It is called once, at w + eps, and only on steps where the penalty is on.

    Args:
        gnp: the penalty, with the direction "gradient", a blend other than "decoupled", one group, all examples in the
            ascent, and no `norm_gate`.

    Raises:
        ValueError: a setting needs `gnp_scale.gnp.penalize`; or `update` was called without `params` or `grad_fn`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> optimizer = optax.chain(penalize_updates(Gnp(r=0.05, alpha=0.8)), optax.sgd(0.1))
        >>> grad_fn = jax.grad(lambda w: jnp.sum(w**2) / 2)
        >>> w = jnp.ones(2)
        >>> updates, _ = optimizer.update(grad_fn(w), optimizer.init(w), w, grad_fn=grad_fn)
        >>> print(updates)
        [-0.10282844 -0.10282844]
    """
    is_one_step = (gnp.direction, gnp.perturb_groups, gnp.ascent_fraction, gnp.norm_gate) == ("gradient", 1, 1, None)
    if not is_one_step or gnp.blend == "decoupled":
        raise ValueError(
            "An optax transformation sees one gradient and returns one. "
            f"Got direction={gnp.direction!r}, blend={gnp.blend!r}, perturb_groups={gnp.perturb_groups}, "
            f"ascent_fraction={gnp.ascent_fraction}, norm_gate={gnp.norm_gate}, which need more. "
            "Call gnp_scale.gnp.penalize instead."
        )

    def init(params: Tree) -> PenalizeState:
        return PenalizeState(jnp.zeros((), jnp.int32))

    def update(updates: Tree, state: Any, params: Tree = None, **extra: Any) -> tuple[Tree, PenalizeState]:
        grad_fn: Callable[[Tree], Tree] | None = extra.get("grad_fn")
        if params is None or grad_fn is None:
            raise ValueError(
                "The update of penalize_updates needs a second gradient, at perturbed parameters. "
                f"Got no {'params' if params is None else 'grad_fn'}. Call update(g1, state, params, grad_fn=...)."
            )

        def penalised(g1: Tree) -> Tree:
            r, alpha = gnp.values(state.count)
            g2 = grad_fn(perturb(params, g1, r, gnp).params)
            weights = blend_weights(gnp.blend, alpha, dots(g1, g2, implementation="xla"))
            return LinearCombination(weights[0], g1, weights[1], g2).like(params)

        def plain(g1: Tree) -> Tree:
            return LinearCombination(1.0, g1, 0.0, None).like(params)

        is_always_on = gnp.gate is None and gnp.is_constant
        if gnp.is_plain:
            u = plain(updates)
        elif is_always_on:
            u = penalised(updates)
        else:
            u = jax.lax.cond(gnp.is_on(state.count), penalised, plain, updates)
        return u, PenalizeState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)
