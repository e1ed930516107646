"""Penalizing the gradient norm: the gradient of L(w) + lambda * ||grad L(w)||, with two passes.

The method of Zhao, Zhang and Hu (ICML 2022, arXiv 2202.03599), as a drop-in for `jax.value_and_grad`:

    g1  = grad L(w)
    eps = r * g1 / ||g1||                   one norm over all parameters
    g2  = grad L(w + eps)
    u   = (1 - alpha) * g1 + alpha * g2     alpha = lambda / r

which is g1 + lambda * H g1 / ||g1|| + O(r), with the Hessian-vector product taken as a finite difference of radius r.
alpha = 1 is SAM (arXiv 2010.01412); alpha = 0 or r = 0 is plain training, in one pass. Norms, eps and u are computed
in float32 at least. Nothing here knows of the trainer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np

type Tree = Any
type Schedule = Callable[[Any], Any]
"""A function of the step (a scalar, or an array of steps elementwise), as the schedules of optax are."""
type Scalar = float | jax.Array

BlendName = Literal["paper", "unit_norm"]


@dataclass(frozen=True)
class Gnp:
    """What to train on: the radius, the weight, and how the two gradients are blended.

    Args:
        r: radius of the perturbation, in the Euclidean norm over all parameters; a number or a schedule of the step.
        alpha: weight of the perturbed gradient; a number or a schedule of the step.
        lam: strength of the penalty, alpha * r; given instead of alpha.
        blend: `"paper"`, (1 - alpha) g1 + alpha g2; or `"unit_norm"`, (1 - alpha) g1 / ||g1|| + alpha g2, which is
            what the authors' released code does by default.

    Raises:
        ValueError: a value is out of range, or not exactly one of `alpha` and `lam` is given.
    """

    r: float | Schedule = 0.05
    alpha: float | Schedule | None = None
    lam: float | Schedule | None = None
    blend: BlendName = "paper"

    def __post_init__(self) -> None:
        if (self.alpha is None) == (self.lam is None):
            raise ValueError(
                "The strength of the penalty is given either as alpha or as lam = alpha * r. "
                f"Got alpha={self.alpha} and lam={self.lam}. Give exactly one of them."
            )
        for name in ("r", "alpha", "lam"):
            value = getattr(self, name)
            if isinstance(value, int | float) and not 0 <= value < float("inf"):
                raise ValueError(f"Gnp.{name} must be finite and not negative. Got {value}. Give a number >= 0.")
        if self.blend not in get_args(BlendName):
            raise ValueError(f"Gnp.blend must be one of {get_args(BlendName)}. Got {self.blend!r}. Choose one of them.")

    def values(self, step: Any = None) -> tuple[Any, Any]:
        """(r, alpha) at `step`; numbers where they do not depend on the step."""
        r = _at(self.r, step)
        if self.lam is None:
            return r, _at(self.alpha, step)
        lam = _at(self.lam, step)
        if isinstance(r, int | float):
            return r, lam / r if r else 0.0
        return r, _ratio(lam, r)

    @property
    def is_plain(self) -> bool:
        """Whether this is plain training at every step: alpha or r is the number 0."""
        return any(isinstance(value, int | float) and value == 0 for value in (self.r, self.alpha, self.lam))

    def is_on(self, steps: np.ndarray) -> np.ndarray:
        """For each of `steps`, whether the penalty is on: where it is not, `PLAIN` does the same in one pass."""
        if self.is_plain:
            return np.zeros(steps.shape, bool)
        r, alpha = self.values(steps)
        return np.broadcast_to((np.asarray(r) > 0) & (np.asarray(alpha) > 0), steps.shape)


PLAIN = Gnp(r=0.0, alpha=0.0)
"""Plain training."""


class Penalized(NamedTuple):
    """What the passes of one step give: the clean loss, its auxiliary output, u, and scalars to watch.

    `telemetry` holds scalars of float32 at least: `grad_norm` ||g1||, `update_grad_norm` ||u||, `r`, `alpha`, `lambda`,
    `on`; and, where there was a second pass, `loss_perturbed` L(w + eps), `grad_norm_perturbed` ||g2||, `cosine` of g1
    and g2, and `curvature` (<g1, g2> / ||g1|| - ||g1||) / r, which tends to d^T H d along the direction d of g1.
    """

    loss: jax.Array
    aux: Any
    grad: Tree
    telemetry: dict[str, jax.Array]


def value_and_grad(loss_fn: Callable[..., Any], gnp: Gnp, has_aux: bool = False) -> Callable[..., Any]:
    """A drop-in for `jax.value_and_grad` that differentiates the penalised loss.

    Args:
        loss_fn: `loss_fn(params, batch, *rest)`, a mean over the examples of `batch`, a pytree of arrays with the
            examples first. With `has_aux`, it returns (loss, aux).
        gnp: the penalty.
        has_aux: whether `loss_fn` returns an auxiliary output beside the loss.

    Returns:
        `fn(params, batch, *rest, step=None)`, which returns (loss, u), or ((loss, aux), u): loss and aux are those of
        the clean pass, u is a tree like `params`, with its types and shardings. `step` is needed by schedules only.

    Example:
        >>> import jax.numpy as jnp
        >>> loss_fn = lambda w, batch: jnp.mean((batch @ w) ** 2) / 2
        >>> loss, u = value_and_grad(loss_fn, Gnp(r=0.05, alpha=0.8))(jnp.ones(2), jnp.eye(2))
        >>> print(loss, u)
        0.5 [0.51414216 0.51414216]

    Reference: equations 4 to 6 and algorithm 1 of arXiv 2202.03599.
    """
    penalized_fn = penalize(loss_fn, gnp, has_aux)

    def fn(params: Tree, batch: Tree, *rest: Any, step: Any = None) -> Any:
        result = penalized_fn(params, batch, *rest, step=step)
        return ((result.loss, result.aux) if has_aux else result.loss), result.grad

    return fn


def penalize(loss_fn: Callable[..., Any], gnp: Gnp, has_aux: bool = False) -> Callable[..., Penalized]:
    """As `value_and_grad`, but the function returns a `Penalized`, with the telemetry of both passes."""
    gradient = jax.value_and_grad(loss_fn, has_aux=has_aux)

    def fn(params: Tree, batch: Tree, *rest: Any, step: Any = None) -> Penalized:
        value, g1 = gradient(params, batch, *rest)
        loss, aux = value if has_aux else (value, None)
        if gnp.is_plain:
            norm = jnp.sqrt(dot(g1, g1))
            return Penalized(loss, aux, g1, {"grad_norm": norm, "update_grad_norm": norm, **_settings(0.0, 0.0)})

        r, alpha = gnp.values(step)
        g1_g1 = dot(g1, g1)
        value, g2 = gradient(perturb(params, g1, r, jnp.sqrt(g1_g1)), batch, *rest)
        loss_perturbed = _wide(value[0] if has_aux else value)
        dots = Dots(g1_g1, dot(g1, g2), dot(g2, g2))
        c1, c2 = blend_weights(gnp.blend, r, alpha, dots)
        telemetry = {"loss_perturbed": loss_perturbed, **_telemetry(dots, r, c1, c2), **_settings(r, alpha)}
        return Penalized(loss, aux, _weighted_sum(c1, g1, c2, g2), telemetry)

    return fn


class Dots(NamedTuple):
    """The inner products of the two gradients, over all parameters."""

    g1_g1: jax.Array
    g1_g2: jax.Array
    g2_g2: jax.Array


def dot(a: Tree, b: Tree) -> jax.Array:
    """<a, b> over all leaves of two trees, in float32 at least; a scalar, the same on every device."""
    products = jax.tree.map(lambda x, y: jnp.sum(_wide(x) * _wide(y)), a, b)
    return sum(jax.tree.leaves(products), start=jnp.zeros((), jnp.float32))


def perturb(params: Tree, direction: Tree, r: Scalar, norm: jax.Array) -> Tree:
    """w + r * direction / norm, added in float32 at least and then cast to the type of w; w itself where norm is 0."""
    scale = _ratio(r, norm)
    return jax.tree.map(lambda w, d: (_wide(w) + scale * _wide(d)).astype(w.dtype), params, direction)


def blend_weights(blend: BlendName, r: Scalar, alpha: Scalar, dots: Dots) -> tuple[jax.Array, jax.Array]:
    """The scalars (c1, c2) with which u = c1 g1 + c2 g2; (1, 0) on steps where a schedule turns the penalty off.

    A norm of g1 that is not finite makes u NaN, so that no wrong step stays unseen.
    """
    norm = jnp.sqrt(dots.g1_g1)
    c1 = 1 - alpha if blend == "paper" else _ratio(1 - alpha, norm)
    c2 = jnp.where(jnp.isfinite(norm), alpha, jnp.nan)
    is_on = (r > 0) & (alpha > 0)
    return jnp.where(is_on, c1, 1.0), jnp.where(is_on, c2, 0.0)


def _weighted_sum(c1: Scalar, g1: Tree, c2: Scalar, g2: Tree) -> Tree:
    return jax.tree.map(lambda a, b: (c1 * _wide(a) + c2 * _wide(b)).astype(a.dtype), g1, g2)


def _telemetry(dots: Dots, r: Scalar, c1: Scalar, c2: Scalar) -> dict[str, jax.Array]:
    norm1, norm2 = jnp.sqrt(dots.g1_g1), jnp.sqrt(dots.g2_g2)
    # ||u||^2 from the inner products, so that u is not read again; rounding must not make it negative.
    u_u = c1**2 * dots.g1_g1 + 2 * c1 * c2 * dots.g1_g2 + c2**2 * dots.g2_g2
    return {
        "grad_norm": norm1,
        "grad_norm_perturbed": norm2,
        "update_grad_norm": jnp.sqrt(jnp.maximum(u_u, 0)),
        "cosine": _ratio(dots.g1_g2, norm1 * norm2),
        "curvature": _ratio(_ratio(dots.g1_g2, norm1) - norm1, r),
    }


def _ratio(a: Scalar, b: Scalar) -> jax.Array:
    """a / b, and 0 where b is 0."""
    return jnp.where(b == 0, 0.0, a / jnp.where(b == 0, 1.0, b))


def _settings(r: Scalar, alpha: Scalar) -> dict[str, jax.Array]:
    settings = {"r": r, "alpha": alpha, "lambda": r * alpha, "on": (r > 0) & (alpha > 0)}
    return {name: jnp.asarray(value, jnp.float32) for name, value in settings.items()}


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _at(value: float | Schedule | None, step: Any) -> Any:
    if not callable(value):
        return cast(float, value)
    if step is None:
        raise ValueError(
            "A schedule is a function of the step. Gnp has a schedule, but no step was given. "
            "Call the function with step=..., the number of updates made so far."
        )
    return value(step)
