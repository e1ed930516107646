"""bfloat16 computation with float32 parameters: norm, perturbation and blend stay in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from gnp_kernels import dots

from gnp_scale.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.divergence import HEALTH
from gnp_scale.gnp import Phase
from gnp_scale.gnp.algebra import perturb
from gnp_scale.step import make_examples, make_loss, make_train_step
from gnp_scale.task import Task

CONFIG = Config(
    data=DataConfig(batch_size=128, eval_batch_size=120),
    model=ModelConfig(name="vit_mu", patch_size=2, depth=2, width=96, num_heads=4),
    optim=OptimConfig(name="adamw", learning_rate=2e-3),
    train=TrainConfig(num_steps=100),
)
R = 0.05


@pytest.fixture
def trained(set_mesh):
    """A task, its state after 30 plain updates, and a batch."""
    set_mesh()
    task = Task.of(CONFIG)
    state, train_step = task.init_state(), make_train_step(task)
    for batch in train_batches(task.dataset, CONFIG.data, seed=0, start_step=0, num_steps=30):
        state, _ = train_step(state, batch, phase=Phase.PLAIN)
    return task, state, batch


def gradient(task, state, batch):
    loss_fn, examples = make_loss(task), make_examples(task, batch, state.step)
    return jax.jit(jax.grad(lambda params: loss_fn(params, examples, state.batch_stats)[0]))


@pytest.mark.slow
def test_the_difference_of_the_gradients_survives_bfloat16(trained):
    """g2 - g1, which is all that the penalty adds, keeps its direction though each gradient is rounded."""
    task, state, batch = trained
    half = Task.of(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dtype="bfloat16")))

    def difference(gradient):
        g1 = gradient(state.params)
        g2 = gradient(perturb(state.params, g1, R))
        assert {g.dtype for g in jax.tree.leaves(g2)} == {jnp.dtype("float32")}
        return jax.tree.map(jnp.subtract, g2, g1)

    expected, got = difference(gradient(task, state, batch)), difference(gradient(half, state, batch))
    products = dots(expected, got)
    assert products.a_b / jnp.sqrt(products.a_a * products.b_b) >= 0.99


@pytest.mark.slow
def test_a_whole_step_in_bfloat16_keeps_float32_state_and_metrics(trained):
    _, state, batch = trained
    half = Task.of(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dtype="bfloat16")))
    types = jax.tree.map(jax.typeof, state)
    after, metrics = make_train_step(half)(state, batch, phase=Phase.FULL)
    assert jax.tree.map(jax.typeof, after) == types
    assert metrics.pop(HEALTH).dtype == jnp.int32
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}
