"""An optimizer that a function of the user returns: any transformation of optax that needs no more than a gradient."""

from typing import Any

import jax
import optax

from gnp_scale import recipe
from gnp_scale.config import check
from gnp_scale.training.rules import on_auto_axes


def of_function(name: str, schedule: optax.Schedule) -> optax.GradientTransformation:
    """The optimizer that the function `name` (`file.py:function`) returns for a learning rate, for any mesh.

    Its state is one that a checkpoint can hold: random keys are numbers there, and arrays without elements left out.

    Raises:
        ConfigError: there is no such function, it fails, or what it returns does; there, and when the state is made
            or an update is traced.
    """
    found = recipe.call(name, "optimizer", schedule)
    check(
        isinstance(found, optax.GradientTransformation),
        f"optimizer {name} returned a {type(found).__name__}: it must return an optax.GradientTransformation",
    )

    def init(params: Any) -> Any:
        with recipe.running(name, "optimizer"):
            state = found.init(params)
        check(
            not optax.tree.get_all_with_path(state, "ScheduleFreeState"),
            f"optimizer {name} keeps other parameters than the trained ones to evaluate (schedule_free), which a run "
            "would not evaluate: return another transformation",
        )
        return jax.tree.map(_packed, state)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        with recipe.running(name, "optimizer"):
            # The compiler leaves out what is not used of the initial state.
            whole = jax.tree.map(_unpacked, found.init(params), state)
            updates, state = found.update(updates, whole, params)
        return updates, jax.tree.map(_packed, state)

    return on_auto_axes(optax.GradientTransformation(init, update))


def _packed(x: jax.Array) -> jax.Array | None:
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    return x if x.size else None


def _unpacked(initial: jax.Array, x: jax.Array | None) -> jax.Array:
    if x is None:
        return initial
    is_key = jax.dtypes.issubdtype(initial.dtype, jax.dtypes.prng_key)
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(initial)) if is_key else x
