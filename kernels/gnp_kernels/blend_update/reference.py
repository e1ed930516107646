"""Blend and update in plain JAX."""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from gnp_kernels.trees import Scalar, Shares, Tree, total, upcast


@dataclass(frozen=True)
class Sgd:
    """m = momentum * m + u; the direction is m, or u + momentum * m with `nesterov`, or u without momentum."""

    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    """Decoupled, times the learning rate."""

    @property
    def num_moments(self) -> int:
        """Number of trees of moments."""
        return 1 if self.momentum else 0

    def direction(
        self, u: jax.Array, moments: tuple[jax.Array, ...], k: "Coefficients"
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """(direction, new moments) of one leaf, in float32."""
        if not moments:
            return u, ()
        m = u + self.momentum * moments[0]
        return (u + self.momentum * m if self.nesterov else m), (m,)


@dataclass(frozen=True)
class AdamW:
    """Algorithm 2 of arXiv 1711.05101: m / c_m / (sqrt(v / c_v) + eps), with the bias corrections c."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled, times the learning rate."""

    num_moments = 2

    def direction(
        self, u: jax.Array, moments: tuple[jax.Array, ...], k: "Coefficients"
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """(direction, new moments) of one leaf, in float32."""
        m = (1 - self.b1) * u + self.b1 * moments[0]
        v = (1 - self.b2) * (u * u) + self.b2 * moments[1]
        return (m / k.mean_correction) / (jnp.sqrt(v / k.square_correction) + self.eps), (m, v)


class Coefficients(NamedTuple):
    """The scalars of one update, float32: what a kernel reads from memory, in this order."""

    c1: Any
    c2: Any
    learning_rate: Any
    mean_correction: Any
    """1 - b1^t, with t counted from 1."""
    square_correction: Any
    """1 - b2^t."""
    applies: Any
    """1; or 0 for a skipped step."""

    @classmethod
    def of(
        cls,
        rule: Sgd | AdamW,
        c1: Scalar,
        c2: Scalar,
        learning_rate: Scalar,
        count: jax.typing.ArrayLike,
        applies: jax.typing.ArrayLike,
    ) -> Self:
        """The scalars as float32 arrays."""
        corrections: tuple[Any, Any] = (1.0, 1.0)
        if isinstance(rule, AdamW):
            t = jnp.asarray(count) + 1
            corrections = (1 - rule.b1**t, 1 - rule.b2**t)
        scalars = (c1, c2, learning_rate, *corrections, applies)
        return cls(*(jnp.asarray(scalar, jnp.float32) for scalar in scalars))


class Options(NamedTuple):
    """Compile-time options of an update; see `api.blend_update`."""

    rule: Sgd | AdamW
    decay_mask: Tree
    copy_dtype: jax.typing.DTypeLike | None
    shares: Shares


class Updated(NamedTuple):
    """The result of one update."""

    params: Tree
    moments: tuple[Tree, ...]
    copy: Tree
    """The new parameters in `copy_dtype`; None if `copy_dtype` is None."""
    update_squared_norm: jax.Array
    """||learning_rate * (direction + decay)||^2, a float32 scalar."""
    params_squared_norm: jax.Array
    """||new w||^2, a float32 scalar."""


def blend_update(
    params: Tree, g1: Tree, g2: Tree, moments: tuple[Tree, ...], k: Coefficients, options: Options
) -> Updated:
    """See `api.blend_update`."""
    structure = jax.tree.structure(params)
    columns = [jax.tree.leaves(tree) for tree in (params, g1, g1 if g2 is None else g2, options.decay_mask, *moments)]
    leaves = [
        update_leaf(w, d1, None if g2 is None else d2, tuple(m), k, options.rule, decays)
        for w, d1, d2, decays, *m in zip(*columns, strict=True)
    ]
    steps = [step for _, step, _ in leaves]
    new_params = structure.unflatten([w for w, _, _ in leaves])
    new_moments = tuple(structure.unflatten([m[i] for _, _, m in leaves]) for i in range(options.rule.num_moments))
    copy = None if options.copy_dtype is None else jax.tree.map(lambda w: w.astype(options.copy_dtype), new_params)
    squared_norms = (
        total([jnp.sum(x * x) for x in leaves], options.shares) for leaves in (steps, jax.tree.leaves(new_params))
    )
    return Updated(new_params, new_moments, copy, *squared_norms)


def update_leaf(
    w: jax.Array,
    g1: jax.Array,
    g2: jax.Array | None,
    moments: tuple[jax.Array, ...],
    k: Coefficients,
    rule: Sgd | AdamW,
    decays: bool,
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """(new w, its step, new moments) of one leaf."""
    w, u = upcast(w), k.c1 * upcast(g1)
    if g2 is not None:
        u = jnp.where(k.c2 == 0, u, u + k.c2 * upcast(g2))
    direction, new_moments = rule.direction(u, moments, k)
    if decays and rule.weight_decay:
        direction = direction + rule.weight_decay * w
    step = jnp.where(k.applies == 0, 0.0, k.learning_rate * direction)
    kept = tuple(jnp.where(k.applies == 0, m, new) for m, new in zip(moments, new_moments, strict=True))
    return w - step, step, kept
