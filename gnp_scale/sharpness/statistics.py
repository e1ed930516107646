"""Batch statistics of parameters that no run has trained, computed anew as in a training pass.

B examples, D draws.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import check
from gnp_scale.data.augment import normalise
from gnp_scale.data.dataset import UNREADABLE, Examples, Rows
from gnp_scale.mesh import AXES, current_axis_size
from gnp_scale.models import registry
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.registry import batch_stats_of
from gnp_scale.sharpness import examples
from gnp_scale.sharpness.examples import During
from gnp_scale.sharpness.objective import Params
from gnp_scale.sharpness.settings import Settings
from gnp_scale.training.leaves import frozen_statistics, unless
from gnp_scale.training.setup import Task

type StatisticsOf = Callable[[Params, Any], Any]
"""`statistics_of(params, data)`: the batch statistics of `params`; with the data that come with the function."""


@dataclass(frozen=True)
class _Usable:
    """The examples of a split, where the next one takes the place of one that cannot be used, as in training."""

    split: Examples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.split.image_shape

    def __len__(self) -> int:
        return len(self.split)

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        """As that of the split."""
        rows = self.split.read(chosen_B, draw_BxD)
        bad_B = rows["label"] == UNREADABLE
        if np.any(bad_B):
            others = self.read((chosen_B[bad_B] + 1) % len(self), None if draw_BxD is None else draw_BxD[bad_B])
            for name, row_B in rows.items():
                row_B[bad_B] = others[name]
        return rows


def prepare(task: Task, batch_stats: Any, settings: Settings, during: During) -> tuple[StatisticsOf, Any]:
    """A function to be compiled, and its data: means, over whole batches of training examples, of the statistics of a
    training pass (arXiv 1803.05407).

    Each batch is one group. Padding and black images would count in the statistics, so there are none. Frozen
    statistics are those of `batch_stats`; a network without batch normalisation has the same for all parameters.
    """
    if not jax.tree.leaves(batch_stats):
        return lambda params, data: data, batch_stats
    num_shards = current_axis_size(AXES)
    num_examples = min(settings.num_examples, len(task.dataset.train))
    size = min(task.config.data.eval_batch_size, num_examples) // num_shards * num_shards
    check(size > 0, f"{num_examples} examples are measured on {num_shards} devices: give at least one for each")
    num_examples = num_examples // size * size
    usable = replace(task, dataset=replace(task.dataset, train=_Usable(task.dataset.train)))
    parts = examples.read(usable, batch_stats, num_examples, size, settings.seed, during).parts
    return _make(task, size), (batch_stats, parts)


def _make(task: Task, batch_size: int) -> StatisticsOf:
    """The network computes in float32, without random branches; images are not augmented."""
    as_float32 = replace(task.config.model, dtype="float32", num_bn_groups=1)
    model = registry.create(as_float32, task.dataset.image_shape, task.dataset.num_classes, batch_size)
    model = replace(model, has_frozen_norm=task.model.has_frozen_norm)

    def statistics_of(params: Params, data: Any) -> Any:
        batch_stats, parts = data
        # A pass moves statistics of 0 to a share of those of its batch.
        mask = frozen_statistics(batch_stats, task.config.optim)
        nothing = unless(mask, jax.tree.map(jnp.zeros_like, batch_stats), batch_stats)

        def of_part(part: Any) -> Any:
            network = model.network(params, nothing)
            network(normalise(part["image"], task.dataset), train=True)
            return batch_stats_of(network)

        moved = jax.lax.map(of_part, parts)
        found = jax.tree.map(lambda x: jnp.mean(x, axis=0) / (1 - BatchNorm.momentum), moved)
        return unless(mask, found, batch_stats)

    return statistics_of
