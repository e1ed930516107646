"""The loss and the accuracy along the straight line between the parameters of two networks.

S steps along the line, B examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import Config, check
from gnp_scale.data.pipeline import Batch, eval_batches, num_eval_batches
from gnp_scale.sharpness import progress, statistics
from gnp_scale.sharpness.examples import During
from gnp_scale.sharpness.objective import Fixed, LossSum, Params, value
from gnp_scale.sharpness.robustness import num_right
from gnp_scale.sharpness.settings import Settings
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.setup import Task

STEPS = np.round(np.linspace(-0.25, 1.25, 31), 10)
"""0 is the first network, 1 the second."""
_ONLY_IN_TRAINING = ("head_bias", "dropout", "drop_path", "shake_gradient", "init_from", "init_allow", "num_bn_groups")
_ONLY_ROUNDING = ("dtype", "attention", "remat", "sequence_parallel")
"""Options of a model with which it computes the same function, up to rounding."""


@dataclass(frozen=True)
class Line:
    """What was measured at each of the steps."""

    steps: np.ndarray
    losses: np.ndarray
    """At fixed training examples."""
    top1: np.ndarray
    """Accuracy on the evaluated images."""

    @property
    def barrier(self) -> float:
        """The largest height of the loss above the straight line between the losses of the two networks.

        max over t in [0, 1] of L(t) - (1 - t) L(0) - t L(1) (arXiv 1912.05671; arXiv 2110.06296, definition 2.1). It is
        0 if the loss is nowhere above.
        """
        return _height(self.steps, self.losses)

    @property
    def top1_barrier(self) -> float:
        """The same of the error rate."""
        return _height(self.steps, 1 - self.top1)


def check_same_network(config: Config, other: Config, name: str) -> None:
    """Refuses the run called `name`, whose configuration is `other`, unless both have one kind of network.

    Raises: ConfigError: as above.
    """
    free = _ONLY_IN_TRAINING + _ONLY_ROUNDING
    changed = [
        f"model.{key} {mine} -> {its}"
        for (key, mine), its in zip(vars(config.model).items(), vars(other.model).values(), strict=True)
        if mine != its and key not in free
    ]
    check(not changed, f"{name} has another network ({', '.join(changed)}): give --to a run of the same network")


def between(
    task: Task,
    loss_sum: LossSum,
    ends: tuple[Params, Params],
    fixed: Fixed,
    settings: Settings,
    during: During,
) -> Line:
    """Measures the line through the parameters `ends`: those of the steps 0 and 1.

    Batch statistics are computed anew at each step: those of either network do not fit the parameters between them.
    """
    stats = list(_statistics(task, ends, fixed.shared, settings, during))
    loss_at = jax.jit(lambda ends, fixed, step: value(loss_sum, at(ends, step), fixed))
    losses, told = [], progress.told(during, "the loss along the line", len(STEPS), "steps")
    for step, batch_stats in zip(STEPS, stats, strict=True):
        with told():
            losses.append(float(loss_at(ends, Fixed(batch_stats, fixed.parts), np.float32(step))))
    return Line(STEPS, np.array(losses), _accuracy(task, ends, stats, during))


def at(ends: tuple[Params, Params], step: jax.typing.ArrayLike) -> Params:
    """(1 - t) w + t v for the parameters w and v of both ends."""
    return jax.tree.map(lambda w, v: (1 - step) * w + step * v, *ends)


def _accuracy(task: Task, ends: tuple[Params, Params], stats: list[Any], during: During) -> np.ndarray:
    """The accuracy at each step. Images are read once."""

    @partial(jax.jit, compiler_options=compiler_options())
    def right_at(ends: tuple[Params, Params], batch_stats: Any, batch: Batch, step: jax.Array) -> jax.Array:
        return num_right(task, at(ends, step), batch_stats, batch)

    right_S, num_images = np.zeros(len(STEPS)), 0.0
    num_batches = num_eval_batches(task.dataset.test, task.config.data)
    told = progress.told(during, "the accuracy along the line", num_batches, "batches")
    for batch in eval_batches(task.dataset.test, task.config.data):
        with told():
            num_images += float(jnp.sum(batch["mask"]))
            # The host waits once for all steps.
            found = [right_at(ends, stats[number], batch, np.float32(step)) for number, step in enumerate(STEPS)]
            right_S += np.array(jax.device_get(found))
    return right_S / num_images


def _statistics(
    task: Task, ends: tuple[Params, Params], batch_stats: Any, settings: Settings, during: During
) -> Iterator[Any]:
    """The batch statistics at each step."""
    statistics_of, data = statistics.prepare(task, batch_stats, settings, during)
    if not jax.tree.leaves(batch_stats):
        yield from [batch_stats] * len(STEPS)
        return

    @partial(jax.jit, compiler_options=compiler_options())
    def statistics_at(ends: tuple[Params, Params], data: Any, step: jax.Array) -> Any:
        return statistics_of(at(ends, step), data)

    told = progress.told(during, "batch statistics along the line", len(STEPS), "steps")
    for step in STEPS:
        with told():
            yield statistics_at(ends, data, np.float32(step))


def _height(steps: np.ndarray, values: np.ndarray) -> float:
    first, last = (float(values[steps == end][0]) for end in (0, 1))
    inside = (steps >= 0) & (steps <= 1)
    return float(np.max((values - (1 - steps) * first - steps * last)[inside]))
