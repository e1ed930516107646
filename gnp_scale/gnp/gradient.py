"""One step of the method; each published variant is a choice of direction, blend and gate."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels import Implementation
from gnp_kernels.trees import upcast

from gnp_scale.gnp import sharded_ops
from gnp_scale.gnp.blend import LinearCombination, Scalar, Tree, blend_weights, norm, perturb, ratio, weighted_sum
from gnp_scale.gnp.microbatch import first_part, mean_over_axis, mean_over_groups, mean_over_microbatches, upcast_tree
from gnp_scale.gnp.settings import Gnp, StepKind
from gnp_scale.gnp.telemetry import combined_norm, geometry, settings


class Penalized(NamedTuple):
    """The results of one step.

    `telemetry` holds scalars of at least float32: `grad_norm` ||g1||, `update_grad_norm` ||u||, `r`, `alpha`, `lambda`,
    `on`; and, if there was a second pass, `loss_perturbed` L(w + eps), `grad_norm_perturbed` ||g2||, `cosine` of g1 and
    g2, and `curvature` (<g1, g2> / ||g1|| - ||g1||) / r, which tends to d^T H d along the direction d of g1. With
    groups they are means over the groups. Metrics that a variant does not compute are absent.
    """

    loss: jax.Array
    """Of the clean pass; with the direction "momentum", of the only pass, which is perturbed."""
    aux: Any
    grad: Any
    """u, for the base optimizer: a tree like the parameters from `penalize`, a `LinearCombination` from `combine`."""
    telemetry: dict[str, jax.Array]
    state: Tree
    """The direction that "reused" keeps for the next step; None for all others."""
    displacement: Tree
    """alpha * (g2 - g1) for the blend "decoupled": the parameters move by -(learning rate) times it; otherwise None."""


def penalize(
    loss_fn: Callable[..., Any],
    gnp: Gnp,
    has_aux: bool = False,
    *,
    num_accumulated: int = 1,
    num_together: int = 1,
    group_axis: str | None = None,
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
        implementation=implementation,
    )

    def fn(params: Tree, *args: Any, **kwargs: Any) -> Penalized:
        result = combined_fn(params, *args, **kwargs)
        return result._replace(grad=result.grad.like(params))

    return fn


def combine(
    loss_fn: Callable[..., Any],
    gnp: Gnp,
    has_aux: bool = False,
    *,
    num_accumulated: int = 1,
    num_together: int = 1,
    group_axis: str | None = None,
    implementation: Implementation = "xla",
) -> Callable[..., Penalized]:
    """The whole step, for every variant, for an update that adds up u itself.

    It is `fn(params, batch, *rest, step=, kind=, state=, momentum=, copy=) -> Penalized`.

    Args:
        loss_fn: as for `value_and_grad`; with more than one microbatch or group its loss and aux are averaged over
            them, at least in float32.
        gnp: the penalty.
        has_aux: whether `loss_fn` also returns an auxiliary output.
        num_accumulated: number of equal microbatches, computed one after the other in every pass. Each device splits
            its own examples, so that none moves.
        num_together: number of consecutive examples that must be in the same microbatch, for example because they
            share batch statistics.
        group_axis: mesh axis whose shards hold the `perturb_groups`; if None, groups are computed one after the other.
            The groups are the same in both cases. On the axis, only the mean of u over the groups is communicated.
        implementation: of norms and perturbation (`gnp_kernels`).

    The function takes, besides the parameters and what `loss_fn` takes,

    * `step`, for schedules;
    * `kind`, static, from `Gnp.step_kinds`;
    * `state`, for the direction "reused": the state that the last step returned, at first a tree of zeros like the
      parameters;
    * `momentum`, for that direction: the optimizer's buffer, a tree like the parameters;
    * `copy`: the parameters in the type to differentiate in; None means the parameters themselves.
    """
    gradient = _value_and_grad(loss_fn, has_aux)
    num_in_group = num_accumulated if group_axis else max(1, num_accumulated // gnp.perturb_groups)
    passes, group_passes = (
        _Passes(gnp, mean_over_microbatches(gradient, number, num_together), implementation)
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
        weights = _Weights(params, copy)
        if kind == StepKind.PLAIN or gnp.is_plain:
            return _plain_pass(passes, weights, batch, rest, state)
        _check_memory(gnp, kind, state, momentum)
        r, alpha = gnp.values(step)
        if gnp.direction == "momentum":
            result = _pass_along_momentum(passes, weights, batch, rest, r, momentum)
        elif kind == StepKind.REUSE:
            result = _pass_with_reused_gradient(passes, weights, batch, rest, r, alpha, state)
        elif gnp.perturb_groups > 1:
            result = _passes_of_groups(group_passes, weights, batch, rest, r, alpha, group_axis)
        else:
            result = _two_passes(passes, weights, batch, rest, r, alpha)
        return result._replace(telemetry=settings(r, alpha, gnp.is_active(r, alpha)) | result.telemetry)

    return fn


def _value_and_grad(loss_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """`fn(params, *args) -> (loss, aux), gradient`."""
    with_aux = loss_fn if has_aux else lambda *args: (loss_fn(*args), None)
    return jax.value_and_grad(with_aux, has_aux=True)


def _check_memory(gnp: Gnp, kind: StepKind, state: Tree, momentum: Tree) -> None:
    missing = "momentum" if gnp.direction == "momentum" and momentum is None else None
    missing = "state" if kind == StepKind.REUSE and state is None else missing
    if missing:
        raise ValueError(
            f'The direction "{gnp.direction}" needs a value from an earlier step. Got no {missing}. '
            f"Call the function with {missing}=..., a tree like the parameters."
        )


class _Weights(NamedTuple):
    """The parameters: the master, which is perturbed and updated, and optionally a copy to differentiate at."""

    master: Tree
    copy: Tree

    @property
    def differentiated(self) -> Tree:
        """Where the clean pass takes its gradient."""
        return self.master if self.copy is None else self.copy

    @property
    def copy_dtype(self) -> Any:
        """The type of the copy; None if there is no copy."""
        dtypes = {x.dtype for x in jax.tree.leaves(self.copy)}
        if len(dtypes) > 1:
            raise ValueError(
                "A copy of the parameters to differentiate at must have one type. "
                f"Got {', '.join(sorted(map(str, dtypes)))}. Cast all of them to one."
            )
        return dtypes.pop() if dtypes else None


class _Passes(NamedTuple):
    """What all kinds of passes share."""

    gnp: Gnp
    gradient: Callable[..., Any]
    """Returns ((loss, aux), gradient) of a batch."""
    implementation: Implementation

    def perturbed(self, weights: _Weights, direction: Tree, r: Scalar) -> Tree:
        """Parameters to differentiate at, moved by r along `direction`."""
        return perturb(
            weights.master,
            direction,
            r,
            adaptive=self.gnp.metric == "adaptive",
            mask=self.gnp.mask,
            dtype=weights.copy_dtype,
            implementation=self.implementation,
        )


def _plain_pass(passes: _Passes, weights: _Weights, batch: Tree, rest: Any, state: Tree) -> Penalized:
    (loss, aux), g1 = passes.gradient(weights.differentiated, batch, *rest)
    g1_norm = norm(g1, passes.implementation)
    telemetry = {"grad_norm": g1_norm, "update_grad_norm": g1_norm, **settings(0.0, 0.0, False)}
    return Penalized(loss, aux, LinearCombination(1.0, g1, 0.0, None), telemetry, state, None)


def _pass_along_momentum(
    passes: _Passes, weights: _Weights, batch: Tree, rest: Any, r: Scalar, momentum: Tree
) -> Penalized:
    perturbed = passes.perturbed(weights, jax.tree.map(jnp.negative, momentum), r)
    (loss, aux), g2 = passes.gradient(perturbed, batch, *rest)
    g2_norm = norm(g2, passes.implementation)
    telemetry = {"loss_perturbed": upcast(loss), "grad_norm_perturbed": g2_norm, "update_grad_norm": g2_norm}
    return Penalized(loss, aux, LinearCombination(1.0, g2, 0.0, None), telemetry, None, None)


def _pass_with_reused_gradient(
    passes: _Passes, weights: _Weights, batch: Tree, rest: Any, r: Scalar, alpha: Scalar, kept: Tree
) -> Penalized:
    """u = g1 + alpha * ||g1|| / ||kept|| * kept (arXiv 2203.02714, algorithm 1)."""
    (loss, aux), g1 = passes.gradient(weights.differentiated, batch, *rest)
    dots = sharded_ops.dots(g1, kept, implementation=passes.implementation)
    g1_norm = jnp.sqrt(dots.a_a)
    # Division by an infinite norm would hide it.
    c2 = jnp.where(jnp.isfinite(dots.b_b), alpha * ratio(g1_norm, jnp.sqrt(dots.b_b)), jnp.nan)
    # `kept` is 0 until a full step was not skipped, and at a minimum, where g1 is 0 too.
    is_on = passes.gnp.is_active(r, alpha) & ((dots.b_b != 0) | (dots.a_a == 0))
    telemetry = {"grad_norm": g1_norm, "update_grad_norm": combined_norm(1.0, c2, dots), "on": upcast(is_on)}
    return Penalized(loss, aux, LinearCombination(1.0, g1, c2, kept), telemetry, kept, None)


def _two_passes(passes: _Passes, weights: _Weights, batch: Tree, rest: Any, r: Scalar, alpha: Scalar) -> Penalized:
    """Algorithm 1 of arXiv 2202.03599."""
    ascent_batch = first_part(batch, passes.gnp.ascent_fraction)
    (loss, aux), g1 = passes.gradient(weights.differentiated, ascent_batch, *rest)
    perturbed = passes.perturbed(weights, g1, r)
    (loss_perturbed, _), g2 = passes.gradient(perturbed, batch, *rest)
    gnp, dots = passes.gnp, sharded_ops.dots(g1, g2, implementation=passes.implementation)
    where_on = partial(jnp.where, gnp.is_active(r, alpha))
    c1, c2 = blend_weights(gnp.blend, alpha, dots)
    # If a schedule is at 0, u is bitwise the plain gradient, for any g2.
    u = LinearCombination(where_on(c1, 1.0), g1, where_on(c2, 0.0), g2)
    kept = weighted_sum(1.0, g2, -ratio(dots.a_b, dots.a_a), g1) if gnp.direction == "reused" else None
    displacement = None
    if gnp.blend == "decoupled":
        displacement = jax.tree.map(where_on, weighted_sum(alpha, g2, -alpha, g1), jax.tree.map(jnp.zeros_like, g1))
    telemetry = {"loss_perturbed": upcast(loss_perturbed), **geometry(gnp, dots, r, u)}
    return Penalized(loss, aux, u, telemetry, kept, displacement)


def _passes_of_groups(
    passes: _Passes, weights: _Weights, batch: Tree, rest: Any, r: Scalar, alpha: Scalar, group_axis: str | None
) -> Penalized:
    """The mean of `_two_passes` over groups of examples, each with its own perturbation."""

    def of_group(group: Tree, shared: Any) -> Penalized:
        weights, rest, r, alpha = shared
        result = _two_passes(passes, weights, group, rest, r, alpha)
        loss, aux = upcast_tree((result.loss, result.aux))
        return result._replace(loss=loss, aux=aux, grad=result.grad.like(weights.master))

    shared = (weights, rest, r, alpha)
    if group_axis:
        result = mean_over_axis(of_group, group_axis, batch, shared)
    else:
        result = mean_over_groups(partial(of_group, shared=shared), passes.gnp.perturb_groups, batch)
    # The norm of the mean is not the mean of the norms.
    telemetry = result.telemetry | {"update_grad_norm": norm(result.grad, passes.implementation)}
    return result._replace(grad=LinearCombination(1.0, result.grad, 0.0, None), telemetry=telemetry)
