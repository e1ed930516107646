"""Steps of one pass: without the penalty, or along a direction that an earlier step has left."""

from typing import Any

import jax.numpy as jnp
from gnp_kernels.trees import upcast

from gnp_scale.gnp import sharded_ops
from gnp_scale.gnp.blend import LinearCombination, Tree, norm, ratio
from gnp_scale.gnp.microbatch import upcast_tree
from gnp_scale.gnp.passes import Inputs, Passes, Penalized, Weights
from gnp_scale.gnp.telemetry import combined_norm, strengths, used_radius


def plain_pass(passes: Passes, weights: Weights, batch: Tree, rest: Any, state: Tree) -> Penalized:
    """u = g1, which "stale" keeps."""
    (loss, aux), g1 = passes.gradient(weights.differentiated, batch, *rest)
    g1_norm = norm(g1, passes.implementation)
    telemetry = {"grad_norm": g1_norm, "update_grad_norm": g1_norm, **strengths(0.0, 0.0, False)}
    state = upcast_tree(g1) if state is not None and passes.gnp.direction == "stale" else state
    return Penalized(loss, aux, LinearCombination(1.0, g1, 0.0, None), telemetry, state, None)


def pass_along(passes: Passes, inputs: Inputs, direction: Tree) -> Penalized:
    """u = g2, the only gradient, which "stale" keeps."""
    perturbed, length = passes.perturbed(inputs.weights, direction, inputs.r)
    (loss, aux), g2 = passes.gradient(perturbed, inputs.batch, *inputs.rest)
    g2_norm = norm(g2, passes.implementation)
    telemetry = {"loss_perturbed": upcast(loss), "grad_norm_perturbed": g2_norm, "update_grad_norm": g2_norm}
    state = upcast_tree(g2) if passes.gnp.direction == "stale" else None
    u = LinearCombination(1.0, g2, 0.0, None)
    return Penalized(loss, aux, u, telemetry | used_radius(passes.gnp, length, 1.0), state, None)


def pass_with_reused_gradient(passes: Passes, inputs: Inputs) -> Penalized:
    """u = g1 + alpha * ||g1|| / ||kept|| * kept (arXiv 2203.02714, algorithm 1)."""
    alpha, kept = inputs.alpha, inputs.state
    (loss, aux), g1 = passes.gradient(inputs.weights.differentiated, inputs.batch, *inputs.rest)
    dots = sharded_ops.dots(g1, kept, implementation=passes.implementation)
    g1_norm = jnp.sqrt(dots.a_a)
    # Division by an infinite norm would hide it, and a radius that is NaN has no other effect.
    is_sound = jnp.isfinite(dots.b_b) & (inputs.r == inputs.r)
    c2 = jnp.where(is_sound, alpha * ratio(g1_norm, jnp.sqrt(dots.b_b)), jnp.nan)
    # `kept` is 0 until a full step was not skipped, and at a minimum, where g1 is 0 too.
    is_on = passes.gnp.is_active(inputs.r, alpha) & ((dots.b_b != 0) | (dots.a_a == 0))
    c2 = jnp.where(is_on, c2, 0.0)
    telemetry = {"grad_norm": g1_norm, "update_grad_norm": combined_norm(1.0, c2, dots)}
    telemetry |= strengths(inputs.r, alpha, is_on)
    return Penalized(loss, aux, LinearCombination(1.0, g1, c2, kept), telemetry, kept, None)
