"""Times of the plain step, the penalised step and a step with `optax.contrib.sam`, interleaved in one process.

Command: python -m benchmarks.train_step [--rounds N]
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gnp_kernels.timing import interleave, ratio
from optax.contrib import normalize, sam

from benchmarks.tasks import MODELS, SETTING, compile_steps, make_batch, make_task, updates
from benchmarks.timing import write_report
from gnp_scale.config import GnpConfig, MeshConfig, ModelConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_examples, make_loss

R = 0.05


def main() -> None:
    """Times the steps of each model and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    num_rounds = parser.parse_args().rounds
    lines = [
        f"Medians over {num_rounds} rounds of the ratios within a round, with quartiles.",
        f"{SETTING} `optax` is `optax.contrib.sam` in opaque mode with a normalised step,",
        "which is the penalised step at alpha = 1, with loss, accuracy, batch statistics and the three norms that the",
        "plain step reports too, but without the telemetry of the second pass.",
        "",
        "| model | penalised / plain | optax / plain | penalised / optax |",
        "|---|---|---|---|",
    ]
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for name, model in MODELS.items():
            seconds = interleave(steps_of(model), num_rounds)
            pairs = (("penalised", "plain"), ("optax", "plain"), ("penalised", "optax"))
            lines.append(f"| {name} | " + " | ".join(ratio(seconds, a, b) for a, b in pairs) + " |")
    write_report("train-step", "Cost of a penalised step", lines)


def steps_of(model: ModelConfig) -> dict[str, Callable[[], Any]]:
    """The three steps, each a function that makes one update of its own state."""
    task = make_task(model, GnpConfig(r=R, alpha=0.8))
    compiled = compile_steps(task, (StepKind.PLAIN, StepKind.FULL))
    return {
        "plain": updates(task, compiled, [StepKind.PLAIN]),
        "penalised": updates(task, compiled, [StepKind.FULL]),
        "optax": optax_step(task, make_batch(task)),
    }


def optax_step(task: Task, batch: dict[str, jax.Array]) -> Callable[[], Any]:
    """One update with `optax.contrib.sam` in opaque mode."""
    adversary = optax.chain(normalize(), optax.sgd(R))
    optimizer = sam(task.optimizer, adversary, sync_period=2, opaque_mode=True)
    loss_fn = make_loss(task)

    @partial(jax.jit, donate_argnames=("params", "opt_state"))
    def train_step(state: Any, params: Any, opt_state: Any, batch: Any) -> Any:
        examples = make_examples(task, batch, state.step)

        def grad_fn(params: Any, _: int) -> Any:
            return jax.grad(loss_fn, has_aux=True)(params, examples, state.batch_stats)[0]

        (loss, aux), grad = jax.value_and_grad(loss_fn, has_aux=True)(params, examples, state.batch_stats)
        update, opt_state = optimizer.update(grad, opt_state, params, grad_fn=grad_fn)
        params = optax.apply_updates(params, update)
        norms = [optax.tree.norm(tree) for tree in (grad, update, params)]
        return (params, opt_state), (loss, aux, norms)

    state = task.init_state()
    # The state keeps its own parameters: those given to the step are donated.
    current = jax.tree.map(jnp.copy, state.params), optimizer.init(state.params)

    def update() -> Any:
        nonlocal current
        current, metrics = train_step(state, *current, batch)
        return current, metrics

    return update


if __name__ == "__main__":
    main()
