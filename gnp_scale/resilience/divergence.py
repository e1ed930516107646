"""Non-finite numbers: the check on the devices before an update, and the decision on the host."""

import math
from collections.abc import Mapping
from enum import IntEnum

import jax
import jax.numpy as jnp

from gnp_scale.config import DivergenceConfig
from gnp_scale.run.messages import announce

HEALTH = "train/health"
"""Name of the `Health` of a step among its metrics."""

_NORMS = ("grad_norm", "grad_norm_perturbed", "update_grad_norm")
_CHECKED = ("loss_perturbed", *_NORMS)
_METRICS = ("train/loss", "train/loss_perturbed", *(f"gnp/{name}" for name in _NORMS), "optim/param_norm")
"""The metrics that decide the health of a step, those nearest to the cause first."""


class Health(IntEnum):
    """How a step went."""

    GOOD = 0
    SKIPPED = 1
    """A loss or a gradient was not finite, so nothing was updated."""
    BROKEN = 2
    """The parameters themselves are not finite."""


class DivergedError(RuntimeError):
    """The run cannot go on from the state after `step`."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(f"step {step}: {reason}")
        self.step = step


def all_finite(loss: jax.Array, telemetry: Mapping[str, jax.Array]) -> jax.Array:
    """Whether both losses and all gradients of a step are finite; a scalar, the same on every device.

    A gradient is judged by its norm, which exists already: no extra pass over memory is needed.
    """
    scalars = [loss, *(telemetry[name] for name in _CHECKED if name in telemetry)]
    return jnp.isfinite(jnp.stack([scalar.astype(jnp.float32) for scalar in scalars])).all()


def health(was_updated: jax.Array, param_norm: jax.Array) -> jax.Array:
    """The `Health` of a step, from the result of `all_finite` and the norm of the new parameters; int32 scalar."""
    return jnp.where(jnp.isfinite(param_norm), jnp.where(was_updated, Health.GOOD, Health.SKIPPED), Health.BROKEN)


class Guard:
    """Decides after each step whether the run may go on; the same decision in every process."""

    def __init__(self, config: DivergenceConfig) -> None:
        self._most_in_a_row = config.max_skipped_steps if config.policy == "skip" else 0
        self._num_in_a_row = 0

    def judge(self, step: int, health: Health, scalars: Mapping[str, float]) -> None:
        """Accepts `step` if it is good, or if it was skipped and this is allowed: then it prints the reason from
        `scalars`.

        Raises:
            DivergedError: the policy does not skip steps, too many in a row were skipped, or skipping does not help.
        """
        if health == Health.GOOD:
            self._num_in_a_row = 0
            return
        self._num_in_a_row += 1
        reason = _first_not_finite(scalars)
        if health == Health.BROKEN or not self._most_in_a_row:
            raise DivergedError(step, reason)
        if self._num_in_a_row > self._most_in_a_row:
            raise DivergedError(step, f"{reason}, as in the {self._most_in_a_row} steps before, which were skipped")
        announce(f"skipped step {step}: {reason}")


def _first_not_finite(scalars: Mapping[str, float]) -> str:
    name = next(name for name in _METRICS if not math.isfinite(scalars.get(name, 0.0)))
    return f"{name} is {scalars[name]}"
