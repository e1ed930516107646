"""The state of training: all that one step hands to the next, and all that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnp_scale.config import TrainConfig
from gnp_scale.models.registry import Model

INITIALISATION = 2**32 - 1
"""Folded into the key of a run's seed for the draws of its parameters: the key of a step folds in its number, which
stays below 2**31."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree; every leaf is sharded like the parameter it belongs to, or whole on every device."""

    step: jax.Array
    """Updates made so far; int32 scalar."""
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    """Moving average of (parameters, batch statistics); None where there is none."""
    kept: Any
    """Direction that the method keeps between steps; None where it keeps none."""
    copy: Any
    """The parameters in the type that gradients are taken in; None where that is their own."""

    @property
    def evaluated(self) -> tuple[Any, Any]:
        """The parameters and batch statistics to evaluate: the moving average where there is one."""
        return (self.params, self.batch_stats) if self.ema is None else self.ema


def make_init(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    with_ema: bool,
    with_kept: bool,
    copy_dtype: jax.typing.DTypeLike | None,
) -> Callable[[], TrainState]:
    """`init()`: the state before the first update, born sharded on the current mesh: no device ever holds all of it.

    It is jitted, so that its shapes and its arrays come of one tracing.
    """

    @jax.jit
    def init() -> TrainState:
        params, batch_stats = model.init(initial_key(seed))
        ema = jax.tree.map(jnp.copy, (params, batch_stats)) if with_ema else None
        kept = jax.tree.map(jnp.zeros_like, params) if with_kept else None
        copy = copy_of(params, copy_dtype)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), ema, kept, copy)

    return init


def initial_key(seed: int) -> jax.Array:
    """The key that the parameters of a run are drawn from."""
    return jax.random.fold_in(jax.random.key(seed), INITIALISATION)


def copy_of(params: Any, dtype: jax.typing.DTypeLike | None) -> Any:
    """The parameters in `dtype`; None where that is None."""
    return None if dtype is None else jax.tree.map(lambda w: w.astype(dtype), params)


def copy_dtype(config: TrainConfig) -> str | None:
    """Type of the copy of the parameters that gradients are taken at; None where there is none."""
    return None if config.gradient_dtype == "float32" else config.gradient_dtype
