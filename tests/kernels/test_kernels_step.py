"""The training step with kernels: its numbers, on CPU devices through Pallas' interpreter."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_STEPS = 2


def config_of(optimizer, gnp, dtype="float32"):
    return Config(
        data=DataConfig(batch_size=16, eval_batch_size=16),
        model=ModelConfig("vit_mu", patch_size=4, depth=1, width=32, num_heads=2, dtype=dtype),
        gnp=gnp,
        # AdamW with a small eps would amplify pure rounding errors: the gradient of the bias of attention's keys.
        optim=OptimConfig(optimizer, learning_rate=1e-2, clip_norm=1.0, weight_decay=0.1, eps=1e-3),
        train=TrainConfig(num_steps=NUM_STEPS, gradient_dtype=dtype),
    )


def states(config, implementation):
    """The state and metrics after each step."""
    task = dataclasses.replace(Task.of(config), implementation=implementation)
    state, train_step = task.init_state(), make_train_step(task)
    batches = train_batches(task.dataset, config.data, seed=0, start_step=0, num_steps=NUM_STEPS)
    found = []
    for batch in batches:
        state, metrics = train_step(state, batch, kind=StepKind.FULL)
        found.append(jax.tree.map(np.asarray, (state, metrics)))
    return found


STEPS = {
    "adamw": (config_of("adamw", GnpConfig()), (1, 4)),
    "sgd, adaptive, masked": (config_of("sgd", GnpConfig(metric="adaptive", perturbed="kernels")), (2, 2)),
    "groups on replicas": (config_of("sgd", GnpConfig(perturb_groups=2)), (2, 2)),
    "gsam in bfloat16": (config_of("adamw", GnpConfig(blend="gsam"), "bfloat16"), (1, 4)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("adamw", marks=pytest.mark.long),
        pytest.param("sgd, adaptive, masked", marks=pytest.mark.long),
        "groups on replicas",
        pytest.param("gsam in bfloat16", marks=pytest.mark.long),
    ],
)
def test_a_step_with_kernels_is_the_step_without(name, set_mesh):
    """State and metrics on a mesh, in units of a leaf's largest entry.

    Norms are summed in another order, so eps and u differ in their last digits, and the second pass spreads this: 64
    ulps of float32. In bfloat16 a gradient that is rounded the other way differs by 2^-8 of itself.
    """
    config, axes = STEPS[name]
    set_mesh(*axes)
    expected = states(config, "xla")
    with pltpu.force_tpu_interpret_mode():
        got = states(config, "pallas")
    tolerance = 64 * 2.0**-23 if config.train.gradient_dtype == "float32" else 2.0**-6
    for (state, metrics), (expected_state, expected_metrics) in zip(got, expected, strict=True):
        assert jax.tree.structure(state) == jax.tree.structure(expected_state)
        for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(expected_state), strict=True):
            assert x.dtype == y.dtype
            x, y = (np.asarray(a, np.float64) for a in (x, y))
            assert np.max(np.abs(x - y), initial=0) <= tolerance * max(np.max(np.abs(y), initial=0), 1e-6)
        assert metrics.keys() == expected_metrics.keys()
        for key, value in metrics.items():
            np.testing.assert_allclose(
                value, expected_metrics[key], rtol=max(1e-4, 4 * tolerance), atol=1e-3, err_msg=key
            )
