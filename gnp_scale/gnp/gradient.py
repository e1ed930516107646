"""One step of the method: every published relative is (direction, blend, gate) over it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels import Implementation
from gnp_kernels.trees import wide

from gnp_scale.gnp import sharded_ops
from gnp_scale.gnp.blend import Blend, Scalar, Tree, blend_weights, norm, perturb, ratio, weighted_sum
from gnp_scale.gnp.microbatch import first_part, mean_over_axis, mean_over_groups, mean_over_parts
from gnp_scale.gnp.settings import Gnp, Phase
from gnp_scale.gnp.telemetry import blend_norm, geometry, settings


class Penalized(NamedTuple):
    """What the passes of one step give.

    `telemetry` holds scalars of float32 at least: `grad_norm` ||g1||, `update_grad_norm` ||u||, `r`, `alpha`, `lambda`,
    `on`; and, where there was a second pass, `loss_perturbed` L(w + eps), `grad_norm_perturbed` ||g2||, `cosine` of g1
    and g2, and `curvature` (<g1, g2> / ||g1|| - ||g1||) / r, which tends to d^T H d along the direction d of g1. With
    groups they are means over the groups. What a variant does not compute is absent.
    """

    loss: jax.Array
    """Of the clean pass; of the only pass, which is perturbed, for the direction "momentum"."""
    aux: Any
    grad: Tree
    """u, for the base optimizer; a tree like the parameters, or the `Blend` that it is, if that was asked for."""
    telemetry: dict[str, jax.Array]
    state: Tree
    """What the direction "reused" keeps for the next step; None for all others."""
    displacement: Tree
    """alpha * (g2 - g1) for the blend "decoupled": the parameters move by -(learning rate) times it; else None."""


def penalize(
    loss_fn: Callable[..., Any],
    gnp: Gnp,
    has_aux: bool = False,
    *,
    num_accumulated: int = 1,
    num_together: int = 1,
    group_axis: str | None = None,
    implementation: Implementation = "reference",
    writes_u: bool = True,
) -> Callable[..., Penalized]:
    """The whole step, for every variant.

    It is `fn(params, batch, *rest, step=, phase=, state=, momentum=, copy=) -> Penalized`.

    Args:
        loss_fn: as for `value_and_grad`; with more than one part or group its loss and aux are averaged over them, in
            float32 at least.
        gnp: the penalty.
        has_aux: whether `loss_fn` returns an auxiliary output beside the loss.
        num_accumulated: equal parts of the batch that are computed one after the other, in every pass. Each device
            cuts the examples that it holds, so that none moves.
        num_together: consecutive examples that come into the same part, as those that share batch statistics must.
        group_axis: mesh axis whose shards hold the `perturb_groups`; when None the groups follow one after the other.
            Either way the groups are the same. On the axis, only the mean of u over the groups is communicated.
        implementation: of norms and perturbation (`gnp_kernels`).
        writes_u: whether `grad` is u; if not it is a `Blend`, for an update that blends as it goes.

    The function takes, besides the parameters and what `loss_fn` takes, `step` (for schedules), `phase` (static, from
    `Gnp.phases`), `state` (for the direction "reused": what the last step returned, a tree of zeros like the parameters
    before the first), `momentum` (for that direction: the optimizer's buffer, a tree like the parameters) and `copy`
    (the parameters in the type to differentiate in; when None, they are that themselves).
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)
    passes = _Passes(gradient, has_aux, gnp, num_accumulated, num_together, group_axis, implementation, writes_u)

    def fn(
        params: Tree,
        batch: Tree,
        *rest: Any,
        step: Any = None,
        phase: Phase = Phase.FULL,
        state: Tree = None,
        momentum: Tree = None,
        copy: Tree = None,
    ) -> Penalized:
        weights = _Weights(params, copy)
        if phase == Phase.PLAIN or gnp.is_plain:
            return passes.plain(weights, batch, rest, state)
        _check_memory(gnp, phase, state, momentum)
        r, alpha = gnp.values(step)
        if gnp.direction == "momentum":
            result = passes.along_momentum(weights, batch, rest, r, momentum)
        elif phase == Phase.REUSE:
            result = passes.reusing(weights, batch, rest, r, alpha, state)
        else:
            result = passes.both(weights, batch, rest, r, alpha)
        return result._replace(telemetry=settings(r, alpha, gnp.is_active(r, alpha)) | result.telemetry)

    return fn


def _check_memory(gnp: Gnp, phase: Phase, state: Tree, momentum: Tree) -> None:
    missing = "momentum" if gnp.direction == "momentum" and momentum is None else None
    missing = "state" if phase == Phase.REUSE and state is None else missing
    if missing:
        raise ValueError(
            f'The direction "{gnp.direction}" goes along what an earlier step left. Got no {missing}. '
            f"Call the function with {missing}=..., a tree like the parameters."
        )


def _wide_tree(tree: Tree) -> Tree:
    return jax.tree.map(lambda x: wide(jnp.asarray(x)), tree)


class _Weights(NamedTuple):
    """The parameters: the master, which is perturbed and updated, and its copy to differentiate at, if it has one."""

    master: Tree
    copy: Tree

    @property
    def differentiated(self) -> Tree:
        """Where the clean pass takes its gradient."""
        return self.master if self.copy is None else self.copy

    @property
    def copy_dtype(self) -> Any:
        """The one type of the copy; None where there is none."""
        dtypes = {x.dtype for x in jax.tree.leaves(self.copy)}
        if len(dtypes) > 1:
            raise ValueError(
                "A copy of the parameters to differentiate at is of one type. "
                f"Got {', '.join(sorted(map(str, dtypes)))}. Cast all of them to one."
            )
        return dtypes.pop() if dtypes else None


class _Passes(NamedTuple):
    """The passes of each phase."""

    gradient: Callable[..., Any]
    has_aux: bool
    gnp: Gnp
    num_accumulated: int
    num_together: int
    group_axis: str | None
    implementation: Implementation
    writes_u: bool

    def plain(self, weights: _Weights, batch: Tree, rest: Any, state: Tree) -> Penalized:
        loss, aux, g1 = self.mean_gradient(weights.differentiated, batch, rest, self.num_accumulated)
        g1_norm = norm(g1, self.implementation)
        norms = {"grad_norm": g1_norm, "update_grad_norm": g1_norm}
        u = self.written(Blend(1.0, g1, 0.0, None), weights)
        return Penalized(loss, aux, u, norms | settings(0.0, 0.0, False), state, None)

    def along_momentum(self, weights: _Weights, batch: Tree, rest: Any, r: Scalar, momentum: Tree) -> Penalized:
        moved = self.perturbed(weights, jax.tree.map(jnp.negative, momentum), r)
        loss, aux, g2 = self.mean_gradient(moved, batch, rest, self.num_accumulated)
        g2_norm = norm(g2, self.implementation)
        telemetry = {"loss_perturbed": wide(loss), "grad_norm_perturbed": g2_norm, "update_grad_norm": g2_norm}
        return Penalized(loss, aux, self.written(Blend(1.0, g2, 0.0, None), weights), telemetry, None, None)

    def reusing(self, weights: _Weights, batch: Tree, rest: Any, r: Scalar, alpha: Scalar, kept: Tree) -> Penalized:
        """u = g1 + alpha * ||g1|| / ||kept|| * kept (arXiv 2203.02714, algorithm 1)."""
        loss, aux, g1 = self.mean_gradient(weights.differentiated, batch, rest, self.num_accumulated)
        dots = sharded_ops.dots(g1, kept, implementation=self.implementation)
        g1_norm = jnp.sqrt(dots.a_a)
        # Division by an infinite norm would hide it.
        c2 = jnp.where(jnp.isfinite(dots.b_b), alpha * ratio(g1_norm, jnp.sqrt(dots.b_b)), jnp.nan)
        # Nothing is kept as long as every full step was skipped; at a minimum there is nothing to keep.
        is_on = self.gnp.is_active(r, alpha) & ((dots.b_b != 0) | (dots.a_a == 0))
        telemetry = {"grad_norm": g1_norm, "update_grad_norm": blend_norm(1.0, c2, dots), "on": wide(is_on)}
        return Penalized(loss, aux, self.written(Blend(1.0, g1, c2, kept), weights), telemetry, kept, None)

    def both(self, weights: _Weights, batch: Tree, rest: Any, r: Scalar, alpha: Scalar) -> Penalized:
        num_groups = self.gnp.perturb_groups
        parts_per_group = self.num_accumulated if self.group_axis else max(1, self.num_accumulated // num_groups)

        def of_group(group: Tree, shared: Any) -> Penalized:
            weights, rest, r, alpha = shared
            ascent_part = first_part(group, self.gnp.ascent_fraction)
            loss, aux, g1 = self.mean_gradient(weights.differentiated, ascent_part, rest, parts_per_group)
            moved = self.perturbed(weights, g1, r)
            loss_perturbed, _, g2 = self.mean_gradient(moved, group, rest, parts_per_group)
            result = self.blended(r, alpha, loss, aux, g1, loss_perturbed, g2)
            if num_groups == 1:
                return result
            # Only the means over the groups are used: that of u, and those of loss and aux, in float32 at least.
            loss, aux = _wide_tree((result.loss, result.aux))
            return result._replace(loss=loss, aux=aux, grad=result.grad.like(weights.master))

        shared = (weights, rest, r, alpha)
        if num_groups == 1:
            result = of_group(batch, shared)
            return result._replace(grad=self.written(result.grad, weights))
        if self.group_axis:
            result = mean_over_axis(of_group, self.group_axis, batch, shared)
        else:
            result = mean_over_groups(partial(of_group, shared=shared), num_groups, batch)
        # The norm of the mean, which is not the mean of the norms.
        telemetry = result.telemetry | {"update_grad_norm": norm(result.grad, self.implementation)}
        u = self.written(Blend(1.0, result.grad, 0.0, None), weights)
        return result._replace(grad=u, telemetry=telemetry)

    def mean_gradient(self, params: Tree, batch: Tree, rest: Any, num_parts: int) -> tuple[jax.Array, Any, Tree]:
        """(loss, aux, gradient), each the mean over the parts of `batch`; sums of parts are in float32 at least."""

        def of_part(part: Tree) -> tuple[jax.Array, Any, Tree]:
            value, g = self.gradient(params, part, *rest)
            loss, aux = value if self.has_aux else (value, None)
            return (loss, aux, g) if num_parts == 1 else _wide_tree((loss, aux, g))

        return mean_over_parts(of_part, num_parts, batch, self.num_together)

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

    def blended(
        self, r: Scalar, alpha: Scalar, loss: jax.Array, aux: Any, g1: Tree, loss_perturbed: jax.Array, g2: Tree
    ) -> Penalized:
        gnp, dots = self.gnp, sharded_ops.dots(g1, g2, implementation=self.implementation)
        where_on = partial(jnp.where, gnp.is_active(r, alpha))
        c1, c2 = blend_weights(gnp.blend, alpha, dots)
        # Where a schedule is at 0, u is the plain gradient to the bit, whatever g2 is.
        blend = Blend(where_on(c1, 1.0), g1, where_on(c2, 0.0), g2)
        kept = weighted_sum(1.0, g2, -ratio(dots.a_b, dots.a_a), g1) if gnp.direction == "reused" else None
        displacement = None
        if gnp.blend == "decoupled":
            displacement = jax.tree.map(where_on, weighted_sum(alpha, g2, -alpha, g1), jax.tree.map(jnp.zeros_like, g1))
        telemetry = {"loss_perturbed": wide(loss_perturbed), **geometry(gnp, dots, r, blend)}
        return Penalized(loss, aux, blend, telemetry, kept, displacement)

    def written(self, blend: Blend, weights: _Weights) -> Tree:
        """u in the types of the master, or the blend as it is for an update that fuses it."""
        return blend.like(weights.master) if self.writes_u else blend
