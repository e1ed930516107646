"""Faults on request: training examples whose images are NaN on the devices, and runs with them.

Also a recipe, for runs in processes.

B examples, H rows, W columns, C channels.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp

from gnp_scale import loop, steps
from gnp_scale.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    DivergenceConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.data import sources
from gnp_scale.data.pipeline import batch_indices
from gnp_scale.exit_codes import Exit
from gnp_scale.monitoring import reporter
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.training import step as step_module

WHITE = 255
DIGITS = Config(
    data=DataConfig(batch_size=64, eval_batch_size=120),
    model=ModelConfig(name="vit_mu", patch_size=2),
    optim=OptimConfig(name="adamw", learning_rate=1e-3),
    train=TrainConfig(num_steps=16, log_every_steps=3, eval_every_steps=8),
    checkpoint=CheckpointConfig(every_steps=5, keep_best=0, num_healthy_reports=1),
)
NUM_TRAIN = 1437


def poison(set_attribute, *places):
    """Makes the examples at these (step, row) of the digits NaN; a negative row counts from the end of the batch.

    Steps count from 1, as a run does. The rows of a batch belong to the devices, and so to the hosts, in order.
    """
    size = DIGITS.data.batch_size
    chosen = [batch_indices(DIGITS.train.seed, NUM_TRAIN, size, number - 1)[row] for number, row in places]
    load = sources.load

    def load_poisoned(config):
        dataset = load(config)
        image = dataset.train.image.copy()
        image[chosen] = WHITE
        return replace(dataset, train=replace(dataset.train, image=image))

    set_attribute(sources, "load", load_poisoned)
    make_white_nan(set_attribute)


def make_white_nan(set_attribute):
    """Makes white images NaN once they are on the devices."""
    make_examples = step_module.make_examples

    def poisoned(task, batch, step):
        examples = make_examples(task, batch, step)
        is_white_B = (batch["image"] == WHITE).all(axis=(1, 2, 3))
        image_BxHxWxC = jnp.where(is_white_B[:, None, None, None], jnp.nan, examples["image"])
        return examples | {"image": image_BxHxWxC}

    set_attribute(step_module, "make_examples", poisoned)


def overflow_gradient(set_attribute):
    """Keeps the loss of white images finite, but makes the gradient of a batch with one too large for float32."""
    make_examples, make_loss = step_module.make_examples, step_module.make_loss

    def marked(task, batch, step):
        is_white_B = (batch["image"] == WHITE).all(axis=(1, 2, 3))
        return make_examples(task, batch, step) | {"is_white": is_white_B}

    def make_steep_loss(task):
        loss_fn = make_loss(task)

        def steep(params, examples, batch_stats):
            loss, aux = loss_fn(params, examples, batch_stats)
            slope = jnp.where(examples["is_white"].any(), 1e30, 0.0)
            parameter = jnp.sum(jax.tree.leaves(params)[0].astype(jnp.float32))
            return loss + slope * (parameter - jax.lax.stop_gradient(parameter)), aux

        return steep

    set_attribute(step_module, "make_examples", marked)
    set_attribute(step_module, "make_loss", make_steep_loss)


def twice():
    """NaN on the first host at step 4, and on the last host in the batch that an undisturbed run reads at step 11."""
    poison(setattr, (4, 0), (11, -1))
    return DIGITS


def with_policy(policy, **settings):
    return replace(DIGITS, divergence=DivergenceConfig(policy, **settings))


def deepen_queue(monkeypatch):
    """Queues the maximum number of steps after the first logged step, even if they are slow."""
    monkeypatch.setattr(reporter, "_QUEUED_MS", 1e9)


def count_batches(monkeypatch):
    """A list that grows by one with each batch that a run takes."""
    taken, read = [], steps.train_batches

    def counted(*arguments):
        for batch in read(*arguments):
            taken.append(len(taken))
            yield batch

    monkeypatch.setattr(steps, "train_batches", counted)
    return taken


def rows_of(run_dir):
    """The logged steps of a run, without the values that depend on the clock."""
    rows = {row.pop("step"): row for row in read_metrics(run_dir)}
    return {step: {k: v for k, v in row.items() if not k.startswith("perf/")} for step, row in rows.items()}


def stop_after(monkeypatch, step, run):
    """Stops a run after `step`, as a signal would."""
    with monkeypatch.context() as patch:
        patch.setattr(loop.StopRequest, "reached", lambda self, reached, batch=0: reached == step)
        assert run() == Exit.PREEMPTED
