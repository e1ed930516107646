"""One update: the loss, the penalised gradient, the optimizer, and the metrics of all three."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gnp_scale import losses
from gnp_scale.data.augment import finish, prepare
from gnp_scale.gnp import Penalized, StepKind, combine
from gnp_scale.mesh import BATCH, REPLICA, P, current_axis_size
from gnp_scale.models.layers import gather_all
from gnp_scale.models.layouts import stored_orders, with_gradient_orders
from gnp_scale.models.registry import batch_stats_of
from gnp_scale.resilience import divergence
from gnp_scale.training import optim
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.groups import check_parts
from gnp_scale.training.penalty import MOMENTUM
from gnp_scale.training.setup import Task
from gnp_scale.training.state import TrainState
from gnp_scale.training.update import select

type Batch = dict[str, jax.Array]
type Metrics = dict[str, Any]


def make_train_step(task: Task) -> Any:
    """`train_step(state, batch, kind=...)`: the state after one update, and its metrics as device scalars.

    The given state is donated. `kind` is static: each kind of step is a separate program. If a loss or a gradient is
    not finite, the step changes only its own number.
    """
    config, gnp = task.config, task.gnp
    groups_are_replicas = gnp.perturb_groups == current_axis_size(REPLICA) > 1
    penalized_fn = combine(
        make_loss(task),
        gnp,
        has_aux=True,
        is_pure=True,
        num_accumulated=config.train.accumulate_steps,
        num_together=task.model.bn_group_size,
        group_axis=REPLICA if groups_are_replicas else None,
        group_dtype=jnp.dtype(config.model.dtype),
        implementation=task.implementation,
    )
    rate = optim.learning_rate(config.optim, config.train.num_steps)

    @partial(jax.jit, donate_argnames="state", static_argnames="kind", compiler_options=compiler_options())
    def train_step(state: TrainState, batch: Batch, *, kind: StepKind) -> tuple[TrainState, Metrics]:
        check_parts(config, has_two_passes=gnp.num_passes(kind) > 1)
        examples, count = make_examples(task, batch, state.step), optim.num_updates(state.opt_state)
        momentum = None
        if gnp.direction == "momentum":
            momentum = optim.moment(state.opt_state, MOMENTUM[config.optim.name], state.params)
        result = penalized_fn(
            state.params,
            examples,
            state.batch_stats,
            step=count,
            kind=kind,
            state=state.kept,
            momentum=momentum,
            copy=state.copy,
        )
        is_finite = divergence.all_finite(result.loss, result.telemetry)
        params, opt_state, copy, norms = task.update(state.params, state.opt_state, result, is_finite)
        before, ema, kept = (state.params, state.batch_stats), None, result.state
        params, batch_stats = optim.with_frozen((params, result.aux[0]), before, config.optim)
        if config.train.ema_decay is not None:
            share = optim.average_share(config.train.ema_decay, count)
            average: Any = optax.incremental_update((params, batch_stats), state.ema, share)
            ema = optim.with_frozen(average, (params, batch_stats), config.optim)
        old = state.batch_stats, state.ema, state.kept
        batch_stats, ema, kept = select(is_finite, (batch_stats, ema, kept), old)
        new = TrainState(state.step + 1, params, batch_stats, opt_state, ema, kept, copy)
        metrics = _metrics(result) | norms | {"optim/learning_rate": rate(count)}
        metrics[divergence.HEALTH] = divergence.health(is_finite, norms["optim/param_norm"])
        if config.divergence.policy == "skip":
            metrics["train/skipped_steps"] = new.step - optim.num_updates(new.opt_state)
        return new, metrics

    return train_step


def make_loss(task: Task) -> Callable[..., tuple[jax.Array, Any]]:
    """`loss_fn(params, examples, batch_stats)` returns the mean loss and (new batch statistics, accuracy)."""
    config, orders = task.config, stored_orders(task.abstract_state().params)

    def loss_fn(params: Any, examples: Batch, batch_stats: Any) -> tuple[jax.Array, Any]:
        params = optim.freeze(with_gradient_orders(params, orders), config.optim)
        examples = finish(examples, config.data, task.dataset)
        used = gather_all(params, jnp.dtype(config.model.dtype)) if config.train.gather == "pass" else params
        network = task.model.network(used, batch_stats)
        logits_BxK = network(examples["image"], train=True, key_B=examples["key"])
        target_BxK = losses.smooth(examples["target"], config.train.label_smoothing)
        target_BxK = losses.above(target_BxK, config.train.target_threshold)
        loss = jnp.mean(losses.LOSSES[config.train.loss](logits_BxK, target_BxK))
        if config.optim.l2_in_loss:
            loss += losses.l2(params, config.optim.l2_in_loss, optim.decay_mask(params, config.optim))
        # For a mixed example, the class with the largest weight.
        label_B = jnp.argmax(examples["target"], axis=-1)
        accuracy = jnp.mean(losses.top_k_correct(logits_BxK, label_B, k=1))
        return loss, (batch_stats_of(network), accuracy)

    return loss_fn


def make_examples(task: Task, batch: Batch, step: jax.typing.ArrayLike) -> Batch:
    """The input of both passes of `step`: images before mixing and normalisation, labels, and a key for each example.

    A key depends only on the seed, the step and the position in the global batch.
    """
    key = jax.random.fold_in(jax.random.key(task.config.train.seed), step)
    place_B = jax.sharding.reshard(jnp.arange(task.config.data.batch_size), P(BATCH))
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, place_B)
    data, mixes = task.config.data, None
    if data.mixup_end < 1:
        mixes = jnp.asarray(step) < round(data.mixup_end * task.config.train.num_steps)
    return prepare(batch | {"key": key_B}, data, mixes)


def augmented_images(task: Task, batch: Batch) -> np.ndarray:
    """The images of `batch` as the first update sees them; only those on the first device of this process."""

    @jax.jit
    def images(batch: Batch) -> jax.Array:
        return finish(make_examples(task, batch, step=0), task.config.data, task.dataset)["image"]

    return np.asarray(images(batch).addressable_data(0))


def _metrics(result: Penalized) -> Metrics:
    _, accuracy = result.aux
    reported = {"train/loss": result.loss}
    if "loss_perturbed" in result.telemetry:
        reported["train/loss_perturbed"] = result.telemetry["loss_perturbed"]
    if "grad_norm" not in result.telemetry:
        # The only pass was the perturbed one.
        del reported["train/loss"]
    watched = {f"gnp/{name}": value for name, value in result.telemetry.items() if name != "loss_perturbed"}
    return reported | {"train/accuracy": accuracy} | watched
