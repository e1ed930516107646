"""The state of training: everything that one step passes to the next, and that a checkpoint holds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnp_scale.config import TrainConfig
from gnp_scale.models.registry import Model
from gnp_scale.training.compilation import compiler_options

INITIALISATION = 2**32 - 1
"""Folded into the key of a run's seed for the initial parameters; a step folds in its number, which is below 2**31."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class NetworkState:
    """The part of a `TrainState` that an evaluation needs: without the optimizer's state, which is larger than it."""

    params: Any
    batch_stats: Any
    ema: Any

    @property
    def evaluated(self) -> tuple[Any, Any]:
        """The parameters and batch statistics to evaluate: the moving average if there is one."""
        return (self.params, self.batch_stats) if self.ema is None else self.ema


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree; every leaf is sharded like the parameter it belongs to, or replicated."""

    step: jax.Array
    """Number of steps so far; int32 scalar."""
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    """Moving average of (parameters, batch statistics), or None."""
    kept: Any
    """What the method keeps between steps (`Gnp.init_state`), or None."""
    copy: Any
    """The parameters in the type in which gradients are taken; None if it is their own type."""

    @property
    def network(self) -> NetworkState:
        """The part that an evaluation needs."""
        return NetworkState(self.params, self.batch_stats, self.ema)


def make_init(
    model: Model,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    with_ema: bool,
    init_kept: Callable[[Any], Any],
    copy_dtype: jax.typing.DTypeLike | None,
) -> Callable[..., TrainState]:
    """`init(given=None)`: the state before the first update, sharded on the current mesh from the start: no device ever
    holds all of it.

    The parameters and batch statistics are random, except those that the pair of trees `given` has: it has None for the
    others. `init` is jitted, so without `given` one trace gives both its shapes and its arrays.
    """

    @partial(jax.jit, compiler_options=compiler_options(runs_once=True))
    def init(given: tuple[Any, Any] | None = None) -> TrainState:
        params, batch_stats = _overlaid(model.init(initial_key(seed)), given)
        ema = jax.tree.map(jnp.copy, (params, batch_stats)) if with_ema else None
        kept = init_kept(params)
        copy = copy_of(params, copy_dtype)
        return TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params), ema, kept, copy)

    return init


def _overlaid(own: tuple[Any, Any], given: tuple[Any, Any] | None) -> tuple[Any, Any]:
    if given is None:
        return own
    return jax.tree.map(lambda x, other: x if other is None else other, own, given)


def initial_key(seed: int) -> jax.Array:
    """The key for the initial parameters of a run."""
    return jax.random.fold_in(jax.random.key(seed), INITIALISATION)


def copy_of(params: Any, dtype: jax.typing.DTypeLike | None) -> Any:
    """The parameters in `dtype`; None if `dtype` is None."""
    return None if dtype is None else jax.tree.map(lambda w: w.astype(dtype), params)


def copy_dtype(config: TrainConfig) -> str | None:
    """Type of the copy of the parameters at which gradients are taken; None if there is no copy."""
    return None if config.gradient_dtype == "float32" else config.gradient_dtype
