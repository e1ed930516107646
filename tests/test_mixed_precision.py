"""bfloat16 computation with float32 parameters: norm, perturbation and blend stay in float32."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from gnp_kernels import dots

from gnp_scale.config import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import Gnp, StepKind
from gnp_scale.gnp.blend import weighted_sum
from gnp_scale.gnp.perturbation import perturb
from gnp_scale.resilience.divergence import HEALTH
from gnp_scale.training.setup import Task
from gnp_scale.training.state import copy_of
from gnp_scale.training.step import make_examples, make_loss, make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

CONFIG = Config(
    data=DataConfig(batch_size=128, eval_batch_size=120),
    model=ModelConfig(name="vit_mu", patch_size=2, depth=2, width=96, num_heads=4),
    optim=OptimConfig(name="adamw", learning_rate=2e-3),
    train=TrainConfig(num_steps=100),
)
R = 0.05
WIDE = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, width=384, num_heads=6))


@pytest.fixture
def trained(set_mesh, request):
    """A task, its state after 30 plain updates, and a batch."""
    set_mesh()
    task, state, batch = train_once(getattr(request, "param", CONFIG))
    return task, jax.tree.map(jnp.copy, state), batch


@functools.cache
def train_once(config):
    task = Task.of(config)
    state, train_step = task.init_state(), make_train_step(task)
    for batch in train_batches(task.dataset, CONFIG.data, seed=0, start_step=0, num_steps=30):
        state, _ = train_step(state, batch, kind=StepKind.PLAIN)
    return task, state, batch


def gradient(task, state, batch):
    loss_fn, examples = make_loss(task), make_examples(task, batch, state.step)
    return jax.jit(jax.grad(lambda params: loss_fn(params, examples, state.batch_stats)[0]))


@pytest.mark.slow
@pytest.mark.parametrize(
    "trained",
    [CONFIG, pytest.param(WIDE, marks=pytest.mark.long)],
    ids=["0.2 M parameters", "3.6 M parameters"],
    indirect=True,
)
@pytest.mark.parametrize(
    "copy_dtype",
    [None, pytest.param("bfloat16", marks=pytest.mark.long)],
    ids=["float32 gradients", "bfloat16 gradients"],
)
def test_the_difference_of_the_gradients_survives_bfloat16(trained, copy_dtype):
    """The penalty adds only g2 - g1, which keeps its direction although each gradient is rounded."""
    task, state, batch = trained
    half = Task.of(dataclasses.replace(task.config, model=dataclasses.replace(task.config.model, dtype="bfloat16")))

    def difference(gradient, dtype):
        g1 = gradient(copy_of(state.params, dtype or "float32"))
        g2 = gradient(perturb(state.params, g1, R, Gnp(alpha=1), dtype=dtype).params)
        assert {g.dtype for g in jax.tree.leaves(g2)} == {jnp.dtype(dtype or "float32")}
        return weighted_sum(1.0, g2, -1.0, g1)

    expected = difference(gradient(task, state, batch), None)
    got = difference(gradient(half, state, batch), copy_dtype)
    products = dots(expected, got)
    assert products.a_b / jnp.sqrt(products.a_a * products.b_b) >= 0.99


# Weights of 20 million parameters, perturbed by their part of r: the type of the parameters, and how far they move.
KEPT_IN = {"float32": (0.99, 1.01), "bfloat16": (0.0, 0.5)}


@pytest.mark.parametrize("kept_in", KEPT_IN)
def test_the_bfloat16_copy_of_20_million_parameters_moves_by_r_along_the_gradient_if_they_are_float32(kept_in):
    """Few entries move, by much more than eps each. Which they are is decided by bits that bfloat16 does not have, so
    that the mean is right with float32 parameters, and with bfloat16 ones most of the perturbation is lost."""
    w, g = (jax.random.normal(jax.random.key(seed), (20_000_000,)) for seed in range(2))
    w = (0.03 * w).astype(kept_in).astype(jnp.float32)
    eps = R * g / jnp.linalg.norm(g)
    copy, moved = (x.astype(jnp.bfloat16).astype(jnp.float32) for x in (w, perturb(w, g, R, Gnp(alpha=1)).params))
    displacement = moved - copy
    along_eps = jnp.vdot(displacement, eps) / R**2
    lowest, highest = KEPT_IN[kept_in]
    assert lowest < along_eps < highest
    assert jnp.mean(displacement != 0) < 0.25
    if kept_in == "float32":
        assert 2 < jnp.linalg.norm(displacement) / R < 5


@pytest.mark.slow
def test_a_whole_step_in_bfloat16_keeps_float32_state_and_metrics(trained):
    _, state, batch = trained
    half = Task.of(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, dtype="bfloat16")))
    types = jax.tree.map(jax.typeof, state)
    after, metrics = make_train_step(half)(state, batch, kind=StepKind.FULL)
    assert jax.tree.map(jax.typeof, after) == types
    assert metrics.pop(HEALTH).dtype == jnp.int32
    assert {value.dtype for value in metrics.values()} == {jnp.dtype("float32")}
