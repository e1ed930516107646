"""Evaluation: every image of the test split counted exactly once, on any number of devices and processes."""

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp_scale import losses
from gnp_scale.config.run import Loss
from gnp_scale.data.augment import normalise
from gnp_scale.data.dataset import UNREADABLE
from gnp_scale.data.pipeline import eval_batches
from gnp_scale.mesh import REPLICATED, sharding
from gnp_scale.monitoring.confusion import NO_GUESS, Guesses
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.setup import Task
from gnp_scale.training.state import NetworkState

type Totals = dict[str, jax.Array]

METRICS = ("loss", "top1", "top5")
_MOST_AHEAD = 2
"""Batches that are queued on the devices, so that an evaluation can end soon."""
_ANSWERED = ("real", "answered")
"""With several right answers: images for which the first guess is one of them, and images that have any."""


class Evaluation(NamedTuple):
    """The result of one evaluation."""

    scores: dict[str, float]
    """`eval/*` by name."""
    guesses: Callable[[], Guesses]
    """Fetches what was guessed for each image, the same in every process."""


def trace_eval_step(task: Task) -> jax.stages.Lowered:
    """The traced program of one batch of an evaluation; shape errors are raised here."""
    total = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding(REPLICATED))
    totals = dict.fromkeys(_names(task), total)
    return _make_eval_step(task).lower(*task.abstract_state().network.evaluated, task.abstract_eval_batch(), totals)


def make_evaluate(task: Task, get_step: Callable[[], Any]) -> Callable[..., Evaluation]:
    """`evaluate(state, before)`: `eval/{loss,top1,top5}`, the mean of `train.loss` in nats, and accuracies on the test
    images; and the first guess for each of them. Labels are neither smoothed nor mixed.

    With `data.eval_labels` also `eval/real`: the share of images with right answers whose first guess is one of them
    (arXiv 2006.07159), 0 if there are no such images.

    If `before` is given, it calls `before(1)`, `before(2)`, ... before each batch; an error there ends it. The host is
    at most `_MOST_AHEAD` batches ahead of the devices.

    Args:
        task: The task to evaluate.
        get_step: Returns the compiled program of `trace_eval_step`; called at each evaluation.
    """

    def evaluate(state: NetworkState, before: Callable[[int], object] = lambda number: None) -> Evaluation:
        eval_step, totals = get_step(), _zero_totals(_names(task))
        guessed: list[dict[str, jax.Array]] = []
        with contextlib.closing(eval_batches(task.dataset.test, task.config.data)) as batches:
            for number, batch in enumerate(batches, start=1):
                before(number)
                totals, guessed_B = eval_step(*state.evaluated, batch, totals)
                guessed.append(guessed_B)
                jax.block_until_ready(guessed[-1 - _MOST_AHEAD : -_MOST_AHEAD])
        sums = jax.device_get(totals)
        scores = {f"eval/{name}": float(sums[name] / sums["count"]) for name in METRICS}
        if task.dataset.num_answers:
            scores["eval/real"] = float(sums["real"] / max(sums["answered"], 1))
        return Evaluation(scores, partial(Guesses.of, guessed, len(task.dataset.test), task.dataset.num_classes))

    return evaluate


def _names(task: Task) -> tuple[str, ...]:
    """The names of the sums that an evaluation adds up."""
    return (*METRICS, "count", *(_ANSWERED if task.dataset.num_answers else ()))


def _make_eval_step(task: Task) -> Any:
    """Adds the loss and the correct answers of a batch to the sums; the mask excludes padding.

    Also returns the columns of `Guesses` for the batch, replicated: 16 bytes for an image.
    """

    @partial(jax.jit, donate_argnames="totals", compiler_options=compiler_options())
    def eval_step(
        params: Any, batch_stats: Any, batch: dict[str, jax.Array], totals: Totals
    ) -> tuple[Totals, dict[str, jax.Array]]:
        image = normalise(batch["image"], task.dataset)
        logits_BxK = task.model.network(params, batch_stats)(image, train=False)
        target_BxK = jax.nn.one_hot(batch["label"], task.dataset.num_classes)
        values = {
            "loss": losses.LOSSES[task.config.train.loss](logits_BxK, target_BxK),
            "top1": losses.top_k_correct(logits_BxK, batch["label"], k=1),
            "top5": losses.top_k_correct(logits_BxK, batch["label"], k=5),
            "count": jnp.ones_like(batch["mask"]),
        }
        if task.dataset.num_answers:
            values |= _answered(logits_BxK, batch["answers"])
        # Padded images have values too. Use `where`, because 0 * NaN is not 0.
        is_real = batch["mask"] > 0
        sums = {name: totals[name] + jnp.sum(jnp.where(is_real, value, 0.0)) for name, value in values.items()}
        return sums, jax.sharding.reshard(_guessed(logits_BxK, batch, task.config.train.loss), REPLICATED)

    return eval_step


def _guessed(logits_BxK: jax.Array, batch: dict[str, jax.Array], loss: Loss) -> dict[str, jax.Array]:
    """The class of the largest logit, of equal ones the first, as in `top_k_correct`; its probability, and the loss.

    The probability is that of a softmax, or of the class alone if the loss is one of a sigmoid.

    Nothing is shared with the sums, whose order, and so their last bits, XLA would choose by what else uses a value.
    """
    logits_BxK = jax.lax.optimization_barrier(logits_BxK)
    is_number_B = ~jnp.any(jnp.isnan(logits_BxK), axis=-1)
    log_share_BxK = jax.nn.log_softmax(logits_BxK.astype(jnp.float32))
    is_label_BxK = jax.nn.one_hot(batch["label"], logits_BxK.shape[-1], dtype=bool)
    if loss != "softmax":
        label_BxK = is_label_BxK.astype(jnp.float32)
        own = {
            "loss": losses.LOSSES[loss](logits_BxK, label_BxK),
            "confidence": jax.nn.sigmoid(jnp.max(logits_BxK, axis=-1).astype(jnp.float32)),
        }
    else:
        own = {
            "loss": -jnp.sum(jnp.where(is_label_BxK, log_share_BxK, 0.0), axis=-1),
            "confidence": jnp.exp(jnp.max(log_share_BxK, axis=-1)),
        }
    return own | {
        "label": jnp.where(batch["mask"] > 0, batch["label"], UNREADABLE),
        "guess": jnp.where(is_number_B, jnp.argmax(logits_BxK, axis=-1).astype(jnp.int32), NO_GUESS),
    }


def _answered(logits_BxK: jax.Array, answer_BxR: jax.Array) -> Totals:
    """Whether the first guess is one of the right answers, and whether there are any (-1 is none)."""
    is_answer_BxR = answer_BxR >= 0
    is_right_BxR = jax.vmap(partial(losses.top_k_correct, k=1), (None, 1), 1)(logits_BxK, jnp.maximum(answer_BxR, 0))
    return {
        "real": jnp.sum(jnp.where(is_answer_BxR, is_right_BxR, 0.0), axis=1),
        "answered": jnp.any(is_answer_BxR, axis=1).astype(jnp.float32),
    }


@partial(jax.jit, static_argnames="names")
def _zero_totals(names: tuple[str, ...]) -> Totals:
    return {name: jnp.zeros(()) for name in names}
