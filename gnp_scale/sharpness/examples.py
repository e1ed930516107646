"""The fixed examples at which a loss is measured, and that loss.

T parts of B examples, of which the first S count.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale import losses
from gnp_scale.data.augment import normalise
from gnp_scale.data.dataset import Examples, Rows
from gnp_scale.data.pipeline import eval_batches
from gnp_scale.data.shuffle import examples_at
from gnp_scale.mesh import AXES, BATCH, P, current_axis_size
from gnp_scale.models import registry
from gnp_scale.sharpness.objective import Fixed, LossSum, Params, Part
from gnp_scale.training import optim
from gnp_scale.training.setup import Task

type During = Callable[[], AbstractContextManager[Any]]
"""Makes a context for a piece of work, which the watchdog sees as progress."""


@dataclass(frozen=True)
class _Chosen:
    """Some examples of a split, in the given order."""

    split: Examples
    number: np.ndarray

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.split.image_shape

    def __len__(self) -> int:
        return len(self.number)

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """As that of the split."""
        return self.split.read(self.number[chosen_B], draw_BxD)


def read(task: Task, batch_stats: Any, num_examples: int, size: int, seed: int, during: During) -> Fixed:
    """Training examples in parts of `size`, as an evaluation reads them; the last part may have fewer.

    They are the first ones of a random order that `seed` decides, so they are the same on any mesh, for any `size`, and
    for all runs on a data set. Images that cannot be used do not count.
    """
    num_examples = min(num_examples, len(task.dataset.train))
    # Convolutional networks share the examples among all devices.
    num_shards = current_axis_size(AXES)
    width = -(-size // num_shards) * num_shards
    part, column = np.divmod(np.arange(-(-num_examples // size) * width), width)
    place = part * size + column
    is_real = (column < size) & (place < num_examples)
    number = examples_at(seed, len(task.dataset.train), np.where(is_real, place, 0))
    chosen = _Chosen(task.dataset.train, number)
    batches = []
    for batch in eval_batches(chosen, replace(task.config.data, eval_batch_size=width)):
        with during():
            batches.append(_part(batch, size, num_examples - size * len(batches)))
    return Fixed(batch_stats, jax.jit(lambda batches: jax.tree.map(lambda *x: jnp.stack(x), *batches))(batches))


@jax.jit
def _part(batch: Part, size: int, num_left: int) -> Part:
    """`batch` with a mask that excludes the examples beyond `size` and `num_left`."""
    column_B = jax.sharding.reshard(jnp.arange(len(batch["mask"])), P(BATCH))
    mask_B = jnp.where(column_B < jnp.minimum(size, num_left), batch["mask"], 0.0)
    return {"image": batch["image"], "label": batch["label"], "mask": mask_B}


def make_loss_sum(task: Task) -> LossSum:
    """The sum of `train.loss` over examples, with the smoothing and threshold of the run's labels, in float32.

    The network is in evaluation mode: no random numbers, and the running batch statistics. Nothing is mixed. Weight
    decay does not belong to it, also if the run has it in its loss. Frozen parameters have no gradient.
    """
    config = task.config
    as_float32 = replace(config.model, dtype="float32", attention="auto")
    shape, num_classes = task.dataset.image_shape, task.dataset.num_classes
    model = registry.create(as_float32, shape, num_classes, config.data.batch_size)

    def loss_sum(params: Params, batch_stats: Any, part: Part) -> jax.Array:
        network = model.network(optim.freeze(params, config.optim), batch_stats)
        logits_BxK = network(normalise(part["image"], task.dataset), train=False)
        target_BxK = losses.smooth(jax.nn.one_hot(part["label"], num_classes), config.train.label_smoothing)
        target_BxK = losses.above(target_BxK, config.train.target_threshold)
        loss_B = losses.LOSSES[config.train.loss](logits_BxK, target_BxK)
        return jnp.sum(jnp.where(part["mask"] > 0, loss_B, 0.0))

    return loss_sum


def free_mask(params: Params, task: Task) -> Any:
    """Pytree of bool: the parameters that are not frozen."""
    return jax.tree.map(lambda is_frozen: not is_frozen, optim.frozen_mask(params, task.config.optim))
