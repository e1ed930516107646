"""Evaluation: every image of the test split counted exactly once, on any number of devices and processes."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from gnp_scale import losses
from gnp_scale.data.augment import normalise
from gnp_scale.data.pipeline import eval_batches
from gnp_scale.mesh import REPLICATED, sharding
from gnp_scale.training.compilation import compiler_options
from gnp_scale.training.setup import Task
from gnp_scale.training.state import TrainState

type Totals = dict[str, jax.Array]

METRICS = ("loss", "top1", "top5")


def trace_eval_step(task: Task) -> jax.stages.Lowered:
    """The traced program of one batch of an evaluation; shape errors are raised here."""
    total = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding(REPLICATED))
    totals = dict.fromkeys((*METRICS, "count"), total)
    return _make_eval_step(task).lower(*task.abstract_state().evaluated, task.abstract_eval_batch(), totals)


def make_evaluate(task: Task, get_step: Callable[[], Any]) -> Callable[[TrainState], dict[str, float]]:
    """`evaluate(state)`: `eval/{loss,top1,top5}`, mean cross-entropy in nats, and accuracies on the test images.

    The host waits for the devices once, at the end.

    Args:
        task: The task to evaluate.
        get_step: Returns the compiled program of `trace_eval_step`; called at each evaluation.
    """

    def evaluate(state: TrainState) -> dict[str, float]:
        eval_step, totals = get_step(), _zero_totals()
        for batch in eval_batches(task.dataset.test, task.config.data):
            totals = eval_step(*state.evaluated, batch, totals)
        sums = jax.device_get(totals)
        return {f"eval/{name}": float(sums[name] / sums["count"]) for name in METRICS}

    return evaluate


def _make_eval_step(task: Task) -> Any:
    """Adds the loss and the correct answers of a batch to the sums; the mask excludes padding."""

    @partial(jax.jit, donate_argnames="totals", compiler_options=compiler_options())
    def eval_step(params: Any, batch_stats: Any, batch: dict[str, jax.Array], totals: Totals) -> Totals:
        image = normalise(batch["image"], task.dataset)
        logits_BxK = task.model.network(params, batch_stats)(image, train=False)
        target_BxK = jax.nn.one_hot(batch["label"], task.dataset.num_classes)
        values = {
            "loss": losses.softmax_cross_entropy(logits_BxK, target_BxK),
            "top1": losses.top_k_correct(logits_BxK, batch["label"], k=1),
            "top5": losses.top_k_correct(logits_BxK, batch["label"], k=5),
            "count": jnp.ones_like(batch["mask"]),
        }
        # Padded images have values too. Use `where`, because 0 * NaN is not 0.
        is_real = batch["mask"] > 0
        return {name: totals[name] + jnp.sum(jnp.where(is_real, value, 0.0)) for name, value in values.items()}

    return eval_step


@jax.jit
def _zero_totals() -> Totals:
    return {name: jnp.zeros(()) for name in (*METRICS, "count")}
