"""One update: the loss, the penalised gradient, the optimizer, and the metrics of all three."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gnp_scale import losses, optim
from gnp_scale.config import Config, PenaltySchedule
from gnp_scale.data.augment import augment
from gnp_scale.gnp import PLAIN, Gnp, Schedule, penalize
from gnp_scale.mesh import BATCH, P
from gnp_scale.state import TrainState
from gnp_scale.task import Task

type Batch = dict[str, jax.Array]
type Metrics = dict[str, Any]


def make_train_step(task: Task) -> Any:
    """`train_step(state, batch, penalised=...)`: the state after one update, and its metrics as device scalars.

    The given state is donated. With `penalised` False the step is plain training, in one pass.
    """
    config = task.config
    loss_fn, gnp = make_loss(task), make_gnp(config)
    rate = optim.learning_rate(config.optim, config.train.num_steps)

    @partial(jax.jit, donate_argnames="state", static_argnames="penalised")
    def train_step(state: TrainState, batch: Batch, *, penalised: bool) -> tuple[TrainState, Metrics]:
        examples = make_examples(task, batch, state.step)
        penalized_fn = penalize(loss_fn, gnp if penalised else PLAIN, has_aux=True)
        result = penalized_fn(state.params, examples, state.batch_stats, step=state.step)
        batch_stats, accuracy = result.aux
        update, opt_state = task.optimizer.update(result.grad, state.opt_state, state.params)
        params = optax.apply_updates(state.params, update)
        ema = None
        if config.train.ema_decay is not None:
            ema = optax.incremental_update(params, state.ema, 1 - config.train.ema_decay)
        metrics = _metrics(result.loss, accuracy, result.telemetry) | {
            "optim/learning_rate": rate(state.step),
            "optim/update_norm": optax.tree.norm(update),
            "optim/param_norm": optax.tree.norm(params),
        }
        return TrainState(state.step + 1, params, batch_stats, opt_state, ema), metrics

    return train_step


def make_loss(task: Task) -> Callable[..., tuple[jax.Array, Any]]:
    """`loss_fn(params, examples, batch_stats)`: the mean loss, and (new batch statistics, accuracy) beside it."""
    config = task.config

    def loss_fn(params: Any, examples: Batch, batch_stats: Any) -> tuple[jax.Array, Any]:
        logits_BxK, batch_stats = task.model.apply(
            params, batch_stats, examples["image"], train=True, key_B=examples["key"]
        )
        target_BxK = losses.smooth(examples["target"], config.train.label_smoothing)
        loss = jnp.mean(losses.softmax_cross_entropy(logits_BxK, target_BxK))
        if config.optim.l2_in_loss:
            loss += losses.l2(params, config.optim.l2_in_loss, optim.decay_mask(params, config.optim))
        # Of a mixed example, the class that it has most of.
        label_B = jnp.argmax(examples["target"], axis=-1)
        accuracy = jnp.mean(losses.top_k_correct(logits_BxK, label_B, k=1))
        return loss, (batch_stats, accuracy)

    return loss_fn


def make_examples(task: Task, batch: Batch, step: jax.typing.ArrayLike) -> Batch:
    """What both passes of `step` see: augmented images, targets, and a key for each example.

    A key follows from the seed, the step and the place in the global batch alone.
    """
    key = jax.random.fold_in(jax.random.key(task.config.train.seed), step)
    place_B = jax.sharding.reshard(jnp.arange(task.config.data.batch_size), P(BATCH))
    key_B = jax.vmap(jax.random.fold_in, (None, 0))(key, place_B)
    return augment(batch | {"key": key_B}, task.config.data, task.dataset)


def augmented_images(task: Task, batch: Batch) -> np.ndarray:
    """The images of `batch` as the first update sees them; of a process's many devices, those of the first."""
    examples = jax.jit(partial(make_examples, task, step=0))(batch)
    return np.asarray(examples["image"].addressable_data(0))


def make_gnp(config: Config) -> Gnp:
    """The penalty of `config`, with its schedules as functions of the step."""
    gnp, peak_rate = config.gnp, config.optim.learning_rate
    rate = optim.learning_rate(config.optim, config.train.num_steps)

    def scheduled(value: float, schedule: PenaltySchedule) -> float | Schedule:
        if not value:
            return value
        match schedule:
            case "constant":
                return value
            case "warmup":
                return optax.linear_schedule(0.0, value, gnp.warmup_steps)
            case "cosine":
                return optax.cosine_decay_schedule(value, config.train.num_steps)
            case "learning_rate":
                return lambda step: value * rate(step) / peak_rate

    return Gnp(
        r=scheduled(gnp.r, gnp.r_schedule),
        alpha=None if gnp.alpha is None else scheduled(gnp.alpha, gnp.alpha_schedule),
        lam=None if gnp.lam is None else scheduled(gnp.lam, gnp.alpha_schedule),
        blend=gnp.blend,
    )


def _metrics(loss: jax.Array, accuracy: jax.Array, telemetry: Metrics) -> Metrics:
    metrics = {"train/loss": loss, "train/accuracy": accuracy}
    if "loss_perturbed" in telemetry:
        metrics["train/loss_perturbed"] = telemetry.pop("loss_perturbed")
    return metrics | {f"gnp/{name}": value for name, value in telemetry.items()}
