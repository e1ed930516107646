"""One step of the method, and its drop-in form: every published relative is (direction, blend, gate) over it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp_scale.gnp.algebra import Dots, Scalar, Tree, blend_weights, dot, norm, perturb, ratio, weighted_sum, wide
from gnp_scale.gnp.parts import first_part, mean_over_axis, mean_over_parts
from gnp_scale.gnp.settings import Gnp, Phase


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
    """u, for the base optimizer; a tree like the parameters."""
    telemetry: dict[str, jax.Array]
    state: Tree
    """What the direction "reused" keeps for the next step; None for all others."""
    displacement: Tree
    """alpha * (g2 - g1) for the blend "decoupled": the parameters move by -(learning rate) times it; else None."""


def value_and_grad(loss_fn: Callable[..., Any], gnp: Gnp, has_aux: bool = False) -> Callable[..., Any]:
    """A drop-in for `jax.value_and_grad` that differentiates the penalised loss.

    Args:
        loss_fn: `loss_fn(params, batch, *rest)`, a mean over the examples of `batch`, a pytree of arrays with the
            examples first. With `has_aux`, it returns (loss, aux).
        gnp: the penalty; not one that needs more than the call of `jax.value_and_grad` gives: see `penalize` for those.
        has_aux: whether `loss_fn` returns an auxiliary output beside the loss.

    Returns:
        `fn(params, batch, *rest, step=None)`, which returns (loss, u), or ((loss, aux), u): loss and aux are those of
        the clean pass, u is a tree like `params`, with its types and shardings. `step` is for schedules and gates.

    Raises:
        ValueError: the blend or direction needs `penalize`.

    Example:
        >>> import jax.numpy as jnp
        >>> loss_fn = lambda w, batch: jnp.mean((batch @ w) ** 2) / 2
        >>> loss, u = value_and_grad(loss_fn, Gnp(r=0.05, alpha=0.8))(jnp.ones(2), jnp.eye(2))
        >>> print(loss, u)
        0.5 [0.51414216 0.51414216]

    Reference: equations 4 to 6 and algorithm 1 of arXiv 2202.03599.
    """
    if gnp.direction != "gradient" or gnp.blend == "decoupled":
        raise ValueError(
            "value_and_grad returns what jax.value_and_grad does: a loss and one gradient. "
            f"Got direction={gnp.direction!r}, blend={gnp.blend!r}, which needs or gives more. Call penalize instead."
        )
    penalized_fn = penalize(loss_fn, gnp, has_aux)

    def fn(params: Tree, batch: Tree, *rest: Any, step: Any = None) -> Any:
        def run(phase: Phase) -> Any:
            result = penalized_fn(params, batch, *rest, step=step, phase=phase)
            return ((result.loss, result.aux) if has_aux else result.loss), result.grad

        if gnp.gate is None:
            return run(Phase.FULL)
        return jax.lax.cond(gnp.is_on(step), lambda: run(Phase.FULL), lambda: run(Phase.PLAIN))

    return fn


def penalize(
    loss_fn: Callable[..., Any],
    gnp: Gnp,
    has_aux: bool = False,
    *,
    num_accumulated: int = 1,
    group_axis: str | None = None,
) -> Callable[..., Penalized]:
    """The whole step, for every variant: `fn(params, batch, *rest, step=, phase=, state=, momentum=) -> Penalized`.

    Args:
        loss_fn: as for `value_and_grad`; with more than one part or group its aux is averaged over them.
        gnp: the penalty.
        has_aux: whether `loss_fn` returns an auxiliary output beside the loss.
        num_accumulated: equal parts of the batch that are computed one after the other, in every pass.
        group_axis: mesh axis whose shards hold the `perturb_groups`; when None the groups follow one after the other.
            Either way the groups are the same. On the axis, only the mean of u over the groups is communicated.

    The function takes, besides the parameters and what `loss_fn` takes, `step` (for schedules), `phase` (static, from
    `Gnp.phases`), `state` (for the direction "reused": what the last step returned, a tree of zeros like the parameters
    before the first) and `momentum` (for that direction: the optimizer's buffer, a tree like the parameters).
    """
    passes = _Passes(jax.value_and_grad(loss_fn, has_aux=has_aux), has_aux, gnp, num_accumulated, group_axis)

    def fn(
        params: Tree,
        batch: Tree,
        *rest: Any,
        step: Any = None,
        phase: Phase = Phase.FULL,
        state: Tree = None,
        momentum: Tree = None,
    ) -> Penalized:
        if phase == Phase.PLAIN or gnp.is_plain:
            return passes.plain(params, batch, rest, state)
        _check_memory(gnp, phase, state, momentum)
        r, alpha = gnp.values(step)
        if gnp.direction == "momentum":
            result = passes.along_momentum(params, batch, rest, r, momentum)
        elif phase == Phase.REUSE:
            result = passes.reusing(params, batch, rest, alpha, state)
        else:
            result = passes.both(params, batch, rest, r, alpha)
        is_on = gnp.is_active(r, alpha)
        return result._replace(telemetry=result.telemetry | _settings(r, alpha, is_on))

    return fn


def _check_memory(gnp: Gnp, phase: Phase, state: Tree, momentum: Tree) -> None:
    missing = "momentum" if gnp.direction == "momentum" and momentum is None else None
    missing = "state" if phase == Phase.REUSE and state is None else missing
    if missing:
        raise ValueError(
            f'The direction "{gnp.direction}" goes along what an earlier step left. Got no {missing}. '
            f"Call the function with {missing}=..., a tree like the parameters."
        )


class _Passes(NamedTuple):
    """The passes of each phase."""

    gradient: Callable[..., Any]
    has_aux: bool
    gnp: Gnp
    num_accumulated: int
    group_axis: str | None

    def plain(self, params: Tree, batch: Tree, rest: Any, state: Tree) -> Penalized:
        loss, aux, g1 = self.mean_gradient(params, batch, rest, self.num_accumulated)
        g1_norm = norm(g1)
        norms = {"grad_norm": g1_norm, "update_grad_norm": g1_norm}
        return Penalized(loss, aux, g1, norms | _settings(0.0, 0.0, False), state, None)

    def along_momentum(self, params: Tree, batch: Tree, rest: Any, r: Scalar, momentum: Tree) -> Penalized:
        w = self.perturbed(params, jax.tree.map(jnp.negative, momentum), r)
        loss, aux, g2 = self.mean_gradient(w, batch, rest, self.num_accumulated)
        g2_norm = norm(g2)
        telemetry = {"loss_perturbed": wide(loss), "grad_norm_perturbed": g2_norm, "update_grad_norm": g2_norm}
        return Penalized(loss, aux, g2, telemetry, None, None)

    def reusing(self, params: Tree, batch: Tree, rest: Any, alpha: Scalar, kept: Tree) -> Penalized:
        """u = g1 + alpha * ||g1|| / ||kept|| * kept (arXiv 2203.02714, algorithm 1)."""
        loss, aux, g1 = self.mean_gradient(params, batch, rest, self.num_accumulated)
        g1_norm = norm(g1)
        u = weighted_sum(1.0, g1, alpha * ratio(g1_norm, norm(kept)), kept)
        return Penalized(loss, aux, u, {"grad_norm": g1_norm, "update_grad_norm": norm(u)}, kept, None)

    def both(self, params: Tree, batch: Tree, rest: Any, r: Scalar, alpha: Scalar) -> Penalized:
        num_groups = self.gnp.perturb_groups
        parts_per_group = self.num_accumulated if self.group_axis else max(1, self.num_accumulated // num_groups)

        def of_group(group: Tree, shared: Any) -> Penalized:
            params, rest, r, alpha = shared
            ascent_part = first_part(group, self.gnp.ascent_fraction)
            loss, aux, g1 = self.mean_gradient(params, ascent_part, rest, parts_per_group)
            w = self.perturbed(params, g1, r)
            loss_perturbed, _, g2 = self.mean_gradient(w, group, rest, parts_per_group)
            return _blend(self.gnp, r, alpha, loss, aux, g1, loss_perturbed, g2)

        shared = (params, rest, r, alpha)
        if self.group_axis and num_groups > 1:
            result = mean_over_axis(of_group, self.group_axis, batch, shared)
        else:
            result = mean_over_parts(partial(of_group, shared=shared), num_groups, batch)
        if num_groups > 1:
            # The norm of the mean, which is not the mean of the norms.
            return result._replace(telemetry=result.telemetry | {"update_grad_norm": norm(result.grad)})
        return result

    def mean_gradient(self, params: Tree, batch: Tree, rest: Any, num_parts: int) -> tuple[jax.Array, Any, Tree]:
        """(loss, aux, gradient), each the mean over the parts of `batch`."""

        def of_part(part: Tree) -> tuple[jax.Array, Any, Tree]:
            value, g = self.gradient(params, part, *rest)
            loss, aux = value if self.has_aux else (value, None)
            return loss, aux, g

        return mean_over_parts(of_part, num_parts, batch)

    def perturbed(self, params: Tree, direction: Tree, r: Scalar) -> Tree:
        return perturb(params, direction, r, adaptive=self.gnp.metric == "adaptive", mask=self.gnp.mask)


def _blend(
    gnp: Gnp, r: Scalar, alpha: Scalar, loss: jax.Array, aux: Any, g1: Tree, loss_perturbed: jax.Array, g2: Tree
) -> Penalized:
    dots = Dots(dot(g1, g1), dot(g1, g2), dot(g2, g2))
    is_on = gnp.is_active(r, alpha)
    c1, c2 = blend_weights(gnp.blend, alpha, dots)
    # Where a schedule is at 0, u is the plain gradient to the bit, whatever g2 is.
    where_on = partial(jnp.where, is_on)
    u = jax.tree.map(where_on, weighted_sum(c1, g1, c2, g2), g1)
    c1, c2 = where_on(c1, 1.0), where_on(c2, 0.0)
    kept = weighted_sum(1.0, g2, -ratio(dots.g1_g2, dots.g1_g1), g1) if gnp.direction == "reused" else None
    displacement = None
    if gnp.blend == "decoupled":
        displacement = jax.tree.map(where_on, weighted_sum(alpha, g2, -alpha, g1), jax.tree.map(jnp.zeros_like, g1))
    telemetry = {"loss_perturbed": wide(loss_perturbed), **_geometry(gnp, dots, r, c1, c2)}
    return Penalized(loss, aux, u, telemetry, kept, displacement)


def _geometry(gnp: Gnp, dots: Dots, r: Scalar, c1: Scalar, c2: Scalar) -> dict[str, jax.Array]:
    norm1, norm2 = jnp.sqrt(dots.g1_g1), jnp.sqrt(dots.g2_g2)
    # ||u||^2 from the inner products, so that u is not read again; rounding must not make it negative.
    u_u = c1**2 * dots.g1_g1 + 2 * c1 * c2 * dots.g1_g2 + c2**2 * dots.g2_g2
    geometry = {
        "grad_norm": norm1,
        "grad_norm_perturbed": norm2,
        "update_grad_norm": jnp.sqrt(jnp.maximum(u_u, 0)),
        "cosine": ratio(dots.g1_g2, norm1 * norm2),
    }
    # g2 - g1 is r times the curvature along g1 only where eps goes along g1, and both are of the same examples.
    if gnp.metric == "euclidean" and gnp.mask is None and gnp.ascent_fraction == 1:
        geometry["curvature"] = ratio(ratio(dots.g1_g2, norm1) - norm1, r)
    return geometry


def _settings(r: Scalar, alpha: Scalar, is_on: Any) -> dict[str, jax.Array]:
    settings = {"r": r, "alpha": alpha, "lambda": r * alpha, "on": is_on}
    return {name: jnp.asarray(value, jnp.float32) for name, value in settings.items()}
