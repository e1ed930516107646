"""Builds the data set, network, optimizer and penalty of a configuration, on the current mesh."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from gnp_kernels import Implementation

from gnp_scale import mesh
from gnp_scale.config import Config
from gnp_scale.data import sources
from gnp_scale.data.dataset import Dataset
from gnp_scale.data.pipeline import check_divisible
from gnp_scale.gnp import Gnp
from gnp_scale.models import registry
from gnp_scale.models.registry import Model
from gnp_scale.monitoring.flops import flops
from gnp_scale.run.messages import announce
from gnp_scale.training import optim
from gnp_scale.training.leaves import has_frozen_norm
from gnp_scale.training.penalty import make_gnp
from gnp_scale.training.state import TrainState, copy_dtype, make_init
from gnp_scale.training.update import UpdateFn, implementation, make_update
from gnp_scale.weights.loading import Initial


@dataclass(frozen=True)
class Task:
    """The components of training and evaluation; valid only on the mesh on which it was made."""

    config: Config
    dataset: Dataset
    model: Model
    optimizer: optax.GradientTransformation
    gnp: Gnp
    implementation: Implementation
    """Of norms, perturbation and update."""
    update: UpdateFn

    @classmethod
    def of(cls, config: Config) -> Self:
        """The task of `config`, checked against the current mesh.

        Raises:
            ConfigError: the data are missing, or the components do not fit each other or the mesh. Tracing a step finds
                further errors of this kind.
        """
        check_divisible(config.data)
        dataset = sources.load(config.data)
        model = registry.create(config.model, dataset.image_shape, dataset.num_classes, config.data.batch_size)
        return cls.with_network(config, dataset, model)

    @classmethod
    def with_network(cls, config: Config, dataset: Dataset, model: Model) -> Self:
        """The task of `config` on `dataset` with `model`, which may have another number of classes.

        Raises:
            ConfigError: the components do not fit each other or the mesh.
        """
        model = replace(model, has_frozen_norm=partial(has_frozen_norm, patterns=config.optim.frozen))
        optimizer = optim.make_optimizer(config.optim, config.train.num_steps)
        chosen = implementation(config)
        update = make_update(config, optimizer, chosen)
        task = cls(config, dataset, model, optimizer, make_gnp(config), chosen, update)
        if notice := mesh.undivided(task.abstract_state().params):
            announce(notice)
        return task

    def init_state(self) -> TrainState:
        """The state before the first update.

        Raises: ConfigError: the file of `model.init_from` is gone, or does not fit.
        """
        return self._init() if self.initial is None else self._init(self.initial.load())

    @cached_property
    def planned_kinds(self) -> np.ndarray:
        """The kind of each step (`StepKind`), as long as nothing is rolled back."""
        return self.gnp.step_kinds(np.arange(self.config.train.num_steps))

    @cached_property
    def initial(self) -> Initial | None:
        """The initial parameters from a file; None if they are random."""
        if not self.config.model.init_from:
            return None
        state = self.abstract_state()
        return Initial(self.config.model, self.dataset.image_shape, (state.params, state.batch_stats))

    @cached_property
    def _init(self) -> Callable[..., TrainState]:
        return make_init(
            self.model,
            self.optimizer,
            self.config.train.seed,
            with_ema=self.config.train.ema_decay is not None,
            init_kept=self.gnp.init_state,
            copy_dtype=copy_dtype(self.config.train),
        )

    def abstract_state(self) -> TrainState:
        """Shapes, types and shardings of the state, without its arrays."""
        return self._abstract_state

    @cached_property
    def _abstract_state(self) -> TrainState:
        def on_mesh(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            # Arrays without a sharding are replicated.
            spec = mesh.REPLICATED if x.sharding is None else x.sharding.spec
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=mesh.sharding(spec))

        return jax.tree.map(on_mesh, jax.eval_shape(self._init))

    def abstract_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes, types and shardings of a training batch from the host."""
        return self._abstract_batch(self.config.data.batch_size, {})

    def abstract_eval_batch(self) -> dict[str, jax.ShapeDtypeStruct]:
        """The same for a batch of the test split, with its mask, and all right answers if there is a file of them."""
        size = self.config.data.eval_batch_size
        more: dict[str, Any] = {"mask": ((size,), jnp.float32)}
        if self.dataset.num_answers:
            more["answers"] = ((size, self.dataset.num_answers), jnp.int32)
        return self._abstract_batch(size, more)

    def _abstract_batch(self, num_examples: int, more: dict[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
        entries = {
            "image": ((num_examples, *self.dataset.image_shape), jnp.uint8),
            "label": ((num_examples,), jnp.int32),
            **more,
        }
        return {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=mesh.sharding(mesh.batch_spec(len(shape))))
            for name, (shape, dtype) in entries.items()
        }

    @cached_property
    def flops_per_pass(self) -> int:
        """FLOPs of one forward and backward pass over a batch, three times those of the forward pass."""

        def forward(state: TrainState, image: jax.Array) -> jax.Array:
            return self.model.network(state.params, state.batch_stats)(image, train=False)

        image = self.abstract_batch()["image"]
        image = jax.ShapeDtypeStruct(image.shape, jnp.float32, sharding=image.sharding)
        return 3 * flops(forward, self.abstract_state(), image)
