"""Frozen parameters have no moments, and a frozen normalisation keeps and uses its batch statistics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp_scale.checkpoint import Checkpoints
from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.checkpoint.restore import latest_valid, load_newest
from gnp_scale.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    GnpConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import REPLICATED, sharding
from gnp_scale.models import cnn
from gnp_scale.models.registry import batch_stats_of
from gnp_scale.training.optim import make_optimizer
from gnp_scale.training.setup import Task
from gnp_scale.training.state import TrainState
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(autouse=True)
def _small(monkeypatch, set_mesh):
    monkeypatch.setitem(cnn.LAYOUTS, "cnn_s", (16, 6))
    set_mesh()


def task_of(*patterns, direction="gradient"):
    config = Config(
        data=DataConfig(batch_size=24),
        model=ModelConfig("cnn_s", num_bn_groups=3),
        gnp=GnpConfig(r=0.05, alpha=1.0, direction=direction),
        optim=OptimConfig("sgd", frozen=patterns),
        train=TrainConfig(num_steps=5, accumulate_steps=3, ema_decay=0.9, kernels="xla"),
    )
    return Task.of(config)


def moved(tree):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + jnp.asarray(rng.uniform(0.1, 1, x.shape), x.dtype), tree)


@pytest.mark.parametrize(
    ("pattern", "is_frozen"), [("stages/*/norm/*", True), ("stages/*", True), ("stages/*/scale", False)]
)
def test_a_normalisation_is_frozen_with_its_scale_and_bias(pattern, is_frozen):
    """It then does in training what it does in evaluation."""
    model = task_of(pattern).model
    params, stats = moved(jax.jit(model.init)(jax.random.key(0)))
    image = jnp.asarray(np.random.default_rng(1).normal(size=(24, 8, 8, 1)), jnp.float32)

    @jax.jit
    def logits(params, stats):
        network = model.network(params, stats)
        return network(image, train=True), batch_stats_of(network), model.network(params, stats)(image, train=False)

    train, new, evaluation = logits(params, stats)
    assert np.array_equal(train, evaluation) == is_frozen
    same = [np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (new, stats)), strict=True)]
    assert all(same) if is_frozen else not any(same)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["gradient", "momentum"])
def test_frozen_statistics_stay_bitwise_through_microbatches_and_averages(direction):
    """The mean of three equal numbers, and their moving average, may be others by rounding."""
    task = task_of("stages/0/*", direction=direction)
    state = task.init_state()
    stats = moved(state.batch_stats)
    state = dataclasses.replace(state, batch_stats=stats, ema=(state.ema[0], jax.tree.map(jnp.copy, stats)))
    before = jax.device_get(stats)
    step = make_train_step(task)
    for batch in train_batches(task.dataset, task.config.data, 0, 0, 2):
        state, _ = step(state, batch, kind=StepKind.FULL)
    for after in (state.batch_stats, state.ema[1]):
        jax.tree.map(np.testing.assert_array_equal, after["stages"]["0"], before["stages"]["0"])
        assert not np.array_equal(after["stages"]["1"]["norm"]["mean"], before["stages"]["1"]["norm"]["mean"])
    assert optax.tree.get(state.opt_state, "trace").keys() == {"stages", "head"}
    assert optax.tree.get(state.opt_state, "trace")["stages"].keys() == {"1"}


def test_a_state_with_moments_of_frozen_parameters_is_refused_in_one_line(tmp_path):
    params = {"embed": {"kernel": jnp.ones(4)}, "head": {"kernel": jnp.ones(4)}}

    def state(*patterns):
        moments = make_optimizer(OptimConfig("adamw", frozen=patterns), 10).init(params)
        return jax.device_put(TrainState(jnp.int32(1), params, {}, moments, None, None, None), sharding(REPLICATED))

    with Checkpoints(tmp_path, Config(checkpoint=CheckpointConfig(every_steps=1))) as checkpoints:
        checkpoints.save(1, state(), None)
    new = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state("embed/*"))
    store = open_store(tmp_path)
    with pytest.raises(ConfigError, match="state of the optimizer in the form of another version"):
        latest_valid(store, store.steps(), new)
    assert load_newest(tmp_path, new.network)[0] == 1, "an evaluation does not need the optimizer"
