"""The loss and the accuracy along the straight line between the parameters of two networks.

S steps along the line, B examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import Config, check
from gnp_scale.data.augment import normalise
from gnp_scale.data.pipeline import Batch, eval_batches, num_eval_batches
from gnp_scale.mesh import AXES, current_axis_size
from gnp_scale.models import registry
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.registry import batch_stats_of
from gnp_scale.sharpness import examples, progress
from gnp_scale.sharpness.examples import During
from gnp_scale.sharpness.objective import Fixed, LossSum, Params, value
from gnp_scale.sharpness.robustness import num_right
from gnp_scale.sharpness.settings import Settings
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.leaves import frozen_statistics, unless
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

    Batch statistics are computed anew at each step, as in stochastic weight averaging (arXiv 1803.05407): those of
    either network do not fit the parameters between them.
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
    """The batch statistics at each step: means, over whole batches of training examples, of those of a training pass.

    Each batch is one group. Padding would count in the statistics, so there is none.
    """
    if not jax.tree.leaves(batch_stats):
        yield from [batch_stats] * len(STEPS)
        return
    num_shards = current_axis_size(AXES)
    num_examples = min(settings.num_examples, len(task.dataset.train))
    size = min(task.config.data.eval_batch_size, num_examples) // num_shards * num_shards
    check(size > 0, f"{num_examples} examples are measured on {num_shards} devices: give at least one for each")
    num_examples = num_examples // size * size
    parts = examples.read(task, batch_stats, num_examples, size, settings.seed, during).parts
    statistics_at = _make_statistics(task, size)
    told = progress.told(during, "batch statistics along the line", len(STEPS), "steps")
    for step in STEPS:
        with told():
            yield statistics_at(ends, batch_stats, parts, np.float32(step))


def _make_statistics(task: Task, batch_size: int) -> Any:
    """A jitted function of (ends, batch_stats, parts, step), of which the second is a form, with the frozen statistics.

    The network computes in float32, without random branches; images are not augmented.
    """
    as_float32 = replace(task.config.model, dtype="float32", num_bn_groups=1)
    model = registry.create(as_float32, task.dataset.image_shape, task.dataset.num_classes, batch_size)
    model = replace(model, has_frozen_norm=task.model.has_frozen_norm)

    @partial(jax.jit, compiler_options=compiler_options())
    def statistics_at(ends: tuple[Params, Params], batch_stats: Any, parts: Any, step: jax.Array) -> Any:
        # A pass moves statistics of 0 to a share of those of its batch.
        mask = frozen_statistics(batch_stats, task.config.optim)
        nothing = unless(mask, jax.tree.map(jnp.zeros_like, batch_stats), batch_stats)

        def of_part(part: Any) -> Any:
            network = model.network(at(ends, step), nothing)
            network(normalise(part["image"], task.dataset), train=True)
            return batch_stats_of(network)

        moved = jax.lax.map(of_part, parts)
        found = jax.tree.map(lambda x: jnp.mean(x, axis=0) / (1 - BatchNorm.momentum), moved)
        return unless(mask, found, batch_stats)

    return statistics_at


def _height(steps: np.ndarray, values: np.ndarray) -> float:
    first, last = (float(values[steps == end][0]) for end in (0, 1))
    inside = (steps >= 0) & (steps <= 1)
    return float(np.max((values - (1 - steps) * first - steps * last)[inside]))
