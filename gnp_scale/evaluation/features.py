"""The features of all images of a split: the input of a network's head, in evaluation mode, without augmentation.

T batches of B examples, D features of an example.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data.augment import normalise
from gnp_scale.data.dataset import Examples
from gnp_scale.data.pipeline import eval_batches, num_eval_batches
from gnp_scale.mesh import BATCH, P, on_mesh
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.setup import Task
from gnp_scale.training.state import NetworkState

SHARDED = P(None, BATCH)
"""Of arrays T x B; the features have one dimension more."""


class Features(NamedTuple):
    """Features of the examples of a split. Example n is at place (n // B, n % B), and the devices share each batch."""

    feature: jax.Array
    """float32 T x B x D; 0 for examples that do not count."""
    label: jax.Array
    """int32 T x B."""
    mask: jax.Array
    """float32 T x B; 0 for padding and for images that cannot be used, 1 for all others."""

    def num_counted(self) -> int:
        """How many examples count."""
        return int(jnp.sum(self.mask > 0))

    def numbers(self) -> jax.Array:
        """The places of the examples in their split (int32 T x B)."""
        shape = self.mask.shape
        numbers = jnp.arange(self.mask.size, dtype=jnp.int32).reshape(shape)
        return jax.sharding.reshard(numbers, on_mesh(SHARDED))


def collect(task: Task, state: NetworkState, stages: Stages) -> tuple[Features, Features]:
    """The features of the training split and of the evaluated one.

    They take N x D x 4 bytes, divided among the devices that share the examples.

    Raises:
        ConfigError: some features are not finite.
    """
    step = partial(_make_step(task), *state.evaluated)
    train, test = (_collect(step, split, task.config.data, stages) for split in (task.dataset.train, task.dataset.test))
    if not jnp.isfinite(jnp.sum(train.feature) + jnp.sum(test.feature)):
        raise ConfigError("some features are not finite: the network has diverged, so probe an earlier run")
    return train, test


def _collect(step: Callable[..., Features], split: Examples, config: DataConfig, stages: Stages) -> Features:
    num_batches, found = num_eval_batches(split, config), None
    for number, batch in enumerate(eval_batches(split, config)):
        # Each batch is progress, so a large split may take longer than one evaluation.
        with stages.enter(Stage.EVALUATE, stages.now.step):
            row = step(batch["image"], batch["label"], batch["mask"])
            found = _empty(row, num_batches) if found is None else found
            found = _put(found, row, np.int32(number))
    assert found is not None, "no split is empty"
    return found


def _make_step(task: Task) -> Any:
    """The features of a batch, with its labels and mask."""

    @partial(jax.jit, compiler_options=compiler_options())
    def step(params: Any, batch_stats: Any, image: jax.Array, label_B: jax.Array, mask_B: jax.Array) -> Features:
        feature_BxD = task.model.features(params, batch_stats)(normalise(image, task.dataset))
        return Features(jnp.where(mask_B[:, None] > 0, feature_BxD, 0.0), label_B, mask_B)

    return step


@partial(jax.jit, static_argnames="num_batches")
def _empty(row: Features, num_batches: int) -> Features:
    def zeros(x: jax.Array) -> jax.Array:
        spec = P(None, *jax.typeof(x).sharding.spec)
        return jnp.zeros((num_batches, *x.shape), x.dtype, out_sharding=on_mesh(spec))

    return jax.tree.map(zeros, row)


@partial(jax.jit, donate_argnums=0)
def _put(found: Features, row: Features, number: jax.Array) -> Features:
    return jax.tree.map(lambda all_, x: jax.lax.dynamic_update_index_in_dim(all_, x, number, 0), found, row)
