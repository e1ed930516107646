"""One step of the method; each published variant is a choice of direction, blend and gate."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels import Implementation
from gnp_kernels.trees import upcast

from gnp_scale.gnp import norm_gate, sharded_ops
from gnp_scale.gnp.axis_mean import mean_over_axis
from gnp_scale.gnp.blend import LinearCombination, Tree, blend_weights, norm, ratio, weighted_sum
from gnp_scale.gnp.choices import NormGate
from gnp_scale.gnp.microbatch import first_part, mean_over_groups, mean_over_microbatches, upcast_tree
from gnp_scale.gnp.one_pass import pass_along, pass_with_reused_gradient, plain_pass
from gnp_scale.gnp.passes import Inputs, Passes, Penalized, Weights
from gnp_scale.gnp.settings import Gnp, StepKind
from gnp_scale.gnp.telemetry import geometry, strengths, used_radius
from gnp_scale.mesh import current_axis_size


def penalize(
    loss_fn: Callable[..., Any],
    gnp: Gnp,
    has_aux: bool = False,
    *,
    num_accumulated: int = 1,
    num_together: int = 1,
    group_axis: str | None = None,
    group_dtype: jnp.dtype | None = None,
    implementation: Implementation = "xla",
) -> Callable[..., Penalized]:
    """The whole step, for every variant; u is a tree with the types of the parameters. See `combine`."""
    combined_fn = combine(
        loss_fn,
        gnp,
        has_aux,
        num_accumulated=num_accumulated,
        num_together=num_together,
        group_axis=group_axis,
        group_dtype=group_dtype,
        implementation=implementation,
    )

    def fn(params: Tree, *args: Any, **kwargs: Any) -> Penalized:
        params = jax.tree.map(jnp.asarray, params)
        result = combined_fn(params, *args, **kwargs)
        return result._replace(grad=result.grad.like(params))

    return fn


def combine(
    loss_fn: Callable[..., Any],
    gnp: Gnp,
    has_aux: bool = False,
    *,
    is_pure: bool = False,
    num_accumulated: int = 1,
    num_together: int = 1,
    group_axis: str | None = None,
    group_dtype: jnp.dtype | None = None,
    implementation: Implementation = "xla",
) -> Callable[..., Penalized]:
    """The whole step, for every variant, for an update that adds up u itself.

    It is `fn(params, batch, *rest, step=, kind=, state=, momentum=, copy=) -> Penalized`.

    Args:
        loss_fn: as for `value_and_grad`; with more than one microbatch or group its loss and aux are averaged over
            them, at least in float32.
        gnp: the penalty.
        has_aux: whether `loss_fn` also returns an auxiliary output.
        is_pure: whether `loss_fn` takes and returns arrays only and depends on nothing else that may change. Then all
            passes, groups and microbatches share one trace of its gradient, which takes seconds for a large network.
        num_accumulated: number of equal microbatches, computed one after the other in every pass. Each device splits
            its own examples, so that none moves.
        num_together: number of consecutive examples that must be in the same microbatch, for example because they
            share batch statistics.
        group_axis: mesh axis with one shard for each of the `perturb_groups`, which holds it; if None, groups are
            computed one after the other. The groups are the same in both cases. On the axis, only the mean of u over
            the groups is communicated.
        group_dtype: type in which it is communicated, such as that in which the network computes; None means the
            parameters'.
        implementation: of norms and perturbation (`gnp_kernels`).

    The function takes, besides the parameters and what `loss_fn` takes,

    * `step`, for schedules;
    * `kind`, static, from `Gnp.step_kinds`;
    * `state`, for the directions "reused", "stale" and "friendly", and for a `norm_gate`: the state that the last step
      returned, at first that of `Gnp.init_state`;
    * `momentum`, for that direction: the optimizer's buffer, a tree like the parameters;
    * `copy`: the parameters in the type to differentiate in; None means the parameters themselves.
    """
    gradient = _value_and_grad(loss_fn, has_aux)
    if is_pure:
        gradient = jax.jit(gradient, inline=True)
    num_in_group = num_accumulated if group_axis else max(1, num_accumulated // gnp.perturb_groups)
    passes, group_passes = (
        Passes(gnp, mean_over_microbatches(gradient, number, num_together), implementation)
        for number in (num_accumulated, num_in_group)
    )

    def fn(
        params: Tree,
        batch: Tree,
        *rest: Any,
        step: Any = None,
        kind: StepKind = StepKind.FULL,
        state: Tree = None,
        momentum: Tree = None,
        copy: Tree = None,
    ) -> Penalized:
        weights = Weights(params, copy)
        if kind == StepKind.PLAIN or gnp.is_plain:
            return plain_pass(passes, weights, batch, rest, state)
        _check_memory(gnp, kind, state, momentum)
        r, alpha = gnp.values(step)
        inputs = Inputs(weights, batch, rest, r, alpha, state)
        if gnp.direction == "momentum":
            result = pass_along(passes, inputs, jax.tree.map(jnp.negative, momentum))
        elif gnp.direction == "stale":
            result = pass_along(passes, inputs, state)
        elif kind == StepKind.REUSE:
            result = pass_with_reused_gradient(passes, inputs)
        elif gnp.perturb_groups > 1:
            result = _passes_of_groups(group_passes, inputs, group_axis, group_dtype)
        elif gnp.norm_gate is not None:
            result = _second_pass_if_large(passes, inputs, gnp.norm_gate, step)
        else:
            result = _two_passes(passes, inputs)
        return result._replace(telemetry=strengths(r, alpha, gnp.is_active(r, alpha)) | result.telemetry)

    return fn


def _value_and_grad(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """`fn(params, *args) -> (loss, aux), gradient`."""
    with_aux = loss_fn if has_aux else lambda *args: (loss_fn(*args), None)
    return jax.value_and_grad(with_aux, has_aux=True)


def _check_memory(gnp: Gnp, kind: StepKind, state: Tree, momentum: Tree) -> None:
    what = "a norm_gate" if gnp.norm_gate is not None else f'the direction "{gnp.direction}"'
    needs_state = kind == StepKind.REUSE or gnp.direction in ("stale", "friendly") or gnp.norm_gate is not None
    missing = "momentum" if gnp.direction == "momentum" and momentum is None else None
    missing = "state" if needs_state and state is None else missing
    if missing:
        raise ValueError(
            f"With {what} a step needs a value from an earlier step. Got no {missing}. "
            f"Call the function with {missing}=..., at first "
            f"{'Gnp.init_state(params)' if missing == 'state' else 'zeros like the parameters'}."
        )


def _check_axis(group_axis: str, num_groups: int) -> None:
    num_shards = current_axis_size(group_axis)
    if num_shards != num_groups:
        raise ValueError(
            "Each shard of group_axis holds one of the perturb_groups. "
            f"Got perturb_groups={num_groups} and {num_shards} shards of {group_axis!r}. Make them equal, or leave out "
            "group_axis."
        )


class _Clean(NamedTuple):
    """The results of the clean pass."""

    loss: jax.Array
    aux: Any
    g1: Tree


def _two_passes(passes: Passes, inputs: Inputs) -> Penalized:
    """Algorithm 1 of arXiv 2202.03599."""
    gnp, ascent_batch = passes.gnp, first_part(inputs.batch, passes.gnp.ascent_fraction)
    (loss, aux), g1 = passes.gradient(inputs.weights.differentiated, ascent_batch, *inputs.rest)
    clean = _Clean(loss, aux, g1)
    if gnp.direction != "friendly":
        return _second_pass(passes, inputs, clean, g1)
    average = weighted_sum(gnp.average_decay, inputs.state, 1 - gnp.average_decay, g1)
    average = jax.tree.map(partial(jnp.where, gnp.is_active(inputs.r, inputs.alpha)), average, inputs.state)
    direction = weighted_sum(gnp.gradient_weight, g1, gnp.average_weight, average)
    return _second_pass(passes, inputs, clean, direction)._replace(state=average)


def _second_pass(passes: Passes, inputs: Inputs, clean: _Clean, direction: Tree) -> Penalized:
    gnp, g1, alpha = passes.gnp, clean.g1, inputs.alpha
    perturbed, length = passes.perturbed(inputs.weights, direction, inputs.r)
    (loss_perturbed, _), g2 = passes.gradient(perturbed, inputs.batch, *inputs.rest)
    dots = sharded_ops.dots(g1, g2, implementation=passes.implementation)
    where_on = partial(jnp.where, gnp.is_active(inputs.r, alpha))
    c1, c2 = blend_weights(gnp.blend, alpha, dots)
    # If a schedule is at 0, u is bitwise g1, for any g2.
    u = LinearCombination(where_on(c1, 1.0), g1, where_on(c2, 0.0), g2)
    if_on, kept, displacement = partial(jax.tree.map, lambda x: where_on(x, 0.0)), None, None
    if gnp.direction == "reused":
        kept = if_on(weighted_sum(1.0, g2, -ratio(dots.a_b, dots.a_a), g1))
    if gnp.blend == "decoupled":
        displacement = if_on(weighted_sum(alpha, g2, -alpha, g1))
    telemetry = {"loss_perturbed": upcast(loss_perturbed), **geometry(gnp, dots, length, u)}
    telemetry |= used_radius(gnp, length, alpha)
    return Penalized(clean.loss, clean.aux, u, telemetry, kept, displacement)


def _second_pass_if_large(passes: Passes, inputs: Inputs, gate: NormGate, step: Any) -> Penalized:
    """Two passes, or u = g1 where ||g1|| is small; the second pass has no telemetry of its own."""
    weights, r, alpha = inputs.weights, inputs.r, inputs.alpha
    (loss, aux), g1 = passes.gradient(weights.differentiated, inputs.batch, *inputs.rest)
    g1_norm = norm(g1, passes.implementation)
    is_large, state = norm_gate.judge(gate, inputs.state, g1_norm, gate.at(step))

    def blended() -> tuple[Tree, Any]:
        result = _second_pass(passes, inputs, _Clean(loss, aux, g1), g1)
        found = strengths(r, alpha, passes.gnp.is_active(r, alpha)) | result.telemetry
        return result.grad.like(weights.master), {name: found[name] for name in off}

    def plain() -> tuple[Tree, Any]:
        return LinearCombination(1.0, g1, 0.0, None).like(weights.master), off

    off = strengths(0.0, 0.0, False) | {"update_grad_norm": g1_norm}
    u, telemetry = jax.lax.cond(is_large, blended, plain)
    u = LinearCombination(1.0, u, 0.0, None)
    return Penalized(loss, aux, u, {"grad_norm": g1_norm} | telemetry, state, None)


def _passes_of_groups(
    passes: Passes, inputs: Inputs, group_axis: str | None, group_dtype: jnp.dtype | None
) -> Penalized:
    """The mean of `_two_passes` over groups of examples, each with its own perturbation."""

    def of_group(group: Tree, shared: Inputs) -> Penalized:
        result = _two_passes(passes, shared._replace(batch=group))
        loss, aux = upcast_tree((result.loss, result.aux))
        return result._replace(loss=loss, aux=aux, grad=result.grad.like(shared.weights.master))

    def sent(group: Tree, shared: Inputs) -> Penalized:
        result = of_group(group, shared)
        return result._replace(grad=jax.tree.map(lambda x: x.astype(group_dtype or x.dtype), result.grad))

    shared = inputs._replace(batch=None)
    if group_axis:
        _check_axis(group_axis, passes.gnp.perturb_groups)
        result = mean_over_axis(sent, group_axis, inputs.batch, shared)
    else:
        result = mean_over_groups(partial(of_group, shared=shared), passes.gnp.perturb_groups, inputs.batch)
    # The norm of the mean is not the mean of the norms.
    telemetry = result.telemetry | {"update_grad_norm": norm(result.grad, passes.implementation)}
    return result._replace(grad=LinearCombination(1.0, result.grad, 0.0, None), telemetry=telemetry)
