"""Optimizers against float64 NumPy written from their papers, schedules in closed form, and shardings of the state."""

from dataclasses import replace
from functools import partial
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnp_scale.config import Config, ConfigError, ModelConfig, OptimConfig
from gnp_scale.config.optim import OptimizerName
from gnp_scale.mesh import FSDP, TENSOR, P, divisible_spec, sharding
from gnp_scale.training.optim import average_share, decay_mask, learning_rate, make_optimizer

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_STEPS = 12
SHAPES = {
    "position": (3, 8),
    "blocks": {
        "mlp": {"kernel": (2, 8, 4), "bias": (2, 8)},
        "norm": {"scale": (2, 8), "bias": (2, 8)},
    },
    "head": {"kernel": (8, 10), "bias": (10,)},
}
IS_KERNEL = {
    "position": False,
    "blocks": {"mlp": {"kernel": True, "bias": False}, "norm": {"scale": False, "bias": False}},
    "head": {"kernel": True, "bias": False},
}


def normal(seed: int):
    """Parameters or gradients with a random scale, so that some are clipped and some are not."""
    rng = np.random.default_rng(seed)
    scale = rng.uniform(0.2, 1.5)
    return jax.tree.map(
        lambda shape: (scale * rng.normal(size=shape)).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def rate_float64(c: OptimConfig, t: int) -> float:
    if t < c.warmup_steps:
        return c.learning_rate * t / c.warmup_steps
    progress = (t - c.warmup_steps) / (NUM_STEPS - c.warmup_steps)
    return c.end_learning_rate + (c.learning_rate - c.end_learning_rate) * (1 + np.cos(np.pi * progress)) / 2


# Each oracle updates one leaf w at step t = 0, 1, ... with the gradient g, the rate lr and the decay wd of the leaf; s
# is the state of the leaf, which starts at 0.


def sgd(c, w, g, s, t, lr, wd, is_kernel):
    """Sutskever's momentum in the form of PyTorch, with decoupled decay (SGDW, algorithm 1 of arXiv 1711.05101)."""
    s["m"] = c.momentum * s["m"] + g
    return w - lr * ((g + c.momentum * s["m"] if c.nesterov else s["m"]) + wd * w)


def adam_direction(c, g, s, t):
    s["m"] = c.b1 * s["m"] + (1 - c.b1) * g
    s["v"] = c.b2 * s["v"] + (1 - c.b2) * g**2
    return s["m"] / (1 - c.b1 ** (t + 1)) / (np.sqrt(s["v"] / (1 - c.b2 ** (t + 1))) + c.eps)


def adamw(c, w, g, s, t, lr, wd, is_kernel):
    """arXiv 1711.05101, algorithm 2, with the decay times the whole learning rate."""
    return w - lr * (adam_direction(c, g, s, t) + wd * w)


def lamb(c, w, g, s, t, lr, wd, is_kernel):
    """arXiv 1904.00962, algorithm 2."""
    step = adam_direction(c, g, s, t) + wd * w
    return w - lr * (np.linalg.norm(w) / np.linalg.norm(step) if is_kernel else 1) * step


def lars(c, w, g, s, t, lr, wd, is_kernel):
    """arXiv 1708.03888, algorithm 1, but for the norm of the sum g + wd * w in place of the sum of the norms."""
    step = g + wd * w
    trust = 0.001 * np.linalg.norm(w) / np.linalg.norm(step) if is_kernel else 1
    s["m"] = c.momentum * s["m"] + lr * trust * step
    return w - s["m"]


def lion(c, w, g, s, t, lr, wd, is_kernel):
    """arXiv 2302.06675, algorithm 2."""
    step = np.sign(c.b1 * s["m"] + (1 - c.b1) * g)
    s["m"] = c.b2 * s["m"] + (1 - c.b2) * g
    return w - lr * (step + wd * w)


CLIP_NORM = 13.0
BASE = OptimConfig(warmup_steps=3, end_learning_rate=1e-3, weight_decay=0.1, clip_norm=CLIP_NORM)
OPTIMIZERS = {
    "sgd": (sgd, BASE),
    "adamw": (adamw, replace(BASE, name="adamw", learning_rate=0.01)),
    "lamb": (lamb, replace(BASE, name="lamb", learning_rate=0.03, eps=1e-6)),
    "lars": (lars, replace(BASE, name="lars", learning_rate=2.0)),
    "lion": (lion, replace(BASE, name="lion", learning_rate=0.01, b2=0.99)),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "as is": {},
    "every leaf decayed": {"decay_norm_and_bias": True},
    "heavy-ball": {"nesterov": False},
    "plain": {"weight_decay": 0.0, "clip_norm": None, "warmup_steps": 0},
}


def train_float64(oracle, c: OptimConfig):
    w = jax.tree.map(np.float64, normal(0))
    memory = jax.tree.map(lambda _: {"m": 0.0, "v": 0.0}, w)
    for t in range(NUM_STEPS):
        g = jax.tree.map(np.float64, normal(t + 1))
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(g)))
        clip = 1.0 if c.clip_norm is None else min(1.0, c.clip_norm / norm)

        def move(w, g, is_kernel, s, t=t, clip=clip):
            wd = c.weight_decay if is_kernel or c.decay_norm_and_bias else 0.0
            return oracle(c, w, clip * g, s, t, rate_float64(c, t), wd, is_kernel)

        w = jax.tree.map(move, w, g, IS_KERNEL, memory)
    return w


def train(c: OptimConfig, place=jnp.asarray):
    """Parameters and optimizer state after all steps, with arrays put on devices by `place`."""
    optimizer = make_optimizer(c, NUM_STEPS)

    @jax.jit
    def step(params, opt_state, gradient):
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    params = jax.tree.map(place, normal(0))
    gradients = [jax.tree.map(place, normal(t + 1)) for t in range(NUM_STEPS)]
    opt_state = jax.jit(optimizer.init)(params)
    for gradient in gradients:
        with jax.transfer_guard("disallow"):
            params, opt_state = step(params, opt_state, gradient)
    return params, opt_state


def assert_trees_close(tree, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, expected)


def test_every_optimizer_of_the_configuration_has_an_oracle():
    """Those of adafactor and muon are in `test_optim_rules.py`, because they depend on the layers. A function of the
    user is its own oracle (`test_optim_custom.py`).
    """
    assert {*OPTIMIZERS, "adafactor", "muon", "custom"} == set(get_args(OptimizerName))


def test_the_gradients_of_these_tests_are_clipped_on_some_steps_only():
    norms = [float(optax.tree.norm(normal(t + 1))) for t in range(NUM_STEPS)]
    assert min(norms) < CLIP_NORM < max(norms)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_follows_its_paper(name, variant):
    oracle, config = OPTIMIZERS[name]
    config = replace(config, **VARIANTS[variant])
    assert_trees_close(train(config)[0], train_float64(oracle, config), rtol=1e-5, atol=2e-6)


CHANGED = {"momentum": 0.5, "nesterov": False, "b1": 0.5, "b2": 0.5, "eps": 0.1, "schedule": "step", "step_factor": 0.9}


@pytest.mark.parametrize("name", [name for name in get_args(OptimizerName) if name != "custom"])
def test_an_option_changes_the_steps_unless_the_run_says_that_it_has_no_effect(name):
    """At three points of the schedule, for a kernel of the head, which muon leaves to Adam, and another one."""
    # With the default b2 the moment of lion is too small to turn a sign in three steps.
    base = OptimConfig(name, b2=0.9 if name == "lion" else OptimConfig.b2)
    w = {layer: {"kernel": jnp.arange(1.0, 33.0).reshape(8, 4) / 32} for layer in ("body", "head")}

    def steps(config):
        optimizer, moved = make_optimizer(config, 3), []
        state = optimizer.init(w)
        for number in range(3):
            draw = partial(jax.random.normal, jax.random.key(number))
            g = jax.tree.map(lambda x, draw=draw: draw(x.shape), w)
            updates, state = optimizer.update(g, state, w)
            moved += jax.device_get(jax.tree.leaves(updates))
        return np.stack(moved)

    before = steps(base)
    assert base.unused_advice() is None
    for option, value in CHANGED.items():
        config = replace(base, **{option: value})
        advice = f"without effect with {name} and the schedule cosine: optim.{option} {value}"
        has_effect = not np.array_equal(steps(config), before)
        assert config.unused_advice() == (None if has_effect else advice)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sharded_training_equals_that_of_one_device_and_keeps_every_sharding(set_mesh, name, shape):
    config = OPTIMIZERS[name][1]
    expected, _ = train(config)
    set_mesh(*shape)

    def place(x):
        spec = (None,) * (x.ndim - 2) + ((FSDP, TENSOR) if x.ndim > 1 else (FSDP,))
        return jax.device_put(x, sharding(divisible_spec(P(*spec), x.shape) or P()))

    params, opt_state = train(config, place)
    assert_trees_close(params, expected, rtol=1e-5, atol=2e-6)
    placed = jax.tree.map(lambda x: jax.typeof(place(x)), normal(0))
    assert jax.tree.map(jax.typeof, params) == placed
    for state in (jax.jit(make_optimizer(config, NUM_STEPS).init)(params), opt_state):
        moments = [x for x in jax.tree.leaves(state) if x.ndim]
        copies, rest = divmod(len(moments), len(jax.tree.leaves(placed)))
        assert copies >= 1
        assert rest == 0
        assert [jax.typeof(x) for x in moments] == copies * jax.tree.leaves(placed)


def test_decay_goes_by_the_name_of_a_leaf_not_by_its_rank():
    params = normal(0)
    assert decay_mask(params, OptimConfig()) == IS_KERNEL
    assert decay_mask(params, OptimConfig(decay_norm_and_bias=True)) == jax.tree.map(lambda _: True, IS_KERNEL)


COSINE_AT_60 = 0.1 + 0.9 * (1 + np.cos(np.pi * 50 / 90)) / 2


@pytest.mark.parametrize(
    ("schedule", "end", "expected"),
    [
        ("constant", 0.0, {0: 0.0, 5: 0.5, 10: 1.0, 60: 1.0, 100: 1.0, 120: 1.0}),
        ("cosine", 0.1, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 60: COSINE_AT_60, 100: 0.1, 120: 0.1}),
        ("linear", 0.1, {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.55, 60: 1 - 0.9 * 50 / 90, 100: 0.1, 120: 0.1}),
        ("step", 0.0, {0: 0.0, 5: 0.5, 10: 1.0, 27: 1.0, 28: 0.2, 59: 0.2, 60: 0.04, 80: 0.008, 120: 0.008}),
    ],
)
def test_learning_rate_at_named_steps(schedule, end, expected):
    config = OptimConfig(
        learning_rate=1.0, schedule=schedule, warmup_steps=10, end_learning_rate=end, step_boundaries=(0.28, 0.6, 0.8)
    )
    rate = learning_rate(config, 100)
    np.testing.assert_allclose(np.array([rate(step) for step in expected]), list(expected.values()), rtol=1e-6)
    np.testing.assert_allclose(rate(np.array(list(expected))), list(expected.values()), rtol=1e-6)
    np.testing.assert_allclose(np.array([jax.jit(rate)(s) for s in expected]), list(expected.values()), rtol=1e-6)


def test_boundaries_that_round_to_one_step_all_count():
    config = OptimConfig(learning_rate=1.0, schedule="step", step_boundaries=(0.5, 0.6), step_factor=0.5)
    np.testing.assert_array_equal(learning_rate(config, 2)(np.arange(3)), [1.0, 0.25, 0.25])


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
def test_a_warmup_as_long_as_the_run_is_a_plain_ramp(schedule):
    rate = learning_rate(OptimConfig(learning_rate=1.0, schedule=schedule, warmup_steps=4, step_boundaries=()), 4)
    np.testing.assert_allclose(rate(np.arange(4)), [0.0, 0.25, 0.5, 0.75])


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(
    schedule=st.sampled_from(["cosine", "linear"]),
    peak=st.floats(1e-6, 10.0),
    end_share=st.just(0.0) | st.floats(1e-6, 1.0),
    num_steps=st.integers(1, 200),
    warmup_share=st.floats(0.0, 1.0, exclude_max=True),
)
def test_learning_rate_stays_between_zero_and_peak_and_ends_at_its_end(
    schedule, peak, end_share, num_steps, warmup_share
):
    warmup = int(warmup_share * num_steps)
    config = OptimConfig(learning_rate=peak, schedule=schedule, warmup_steps=warmup, end_learning_rate=end_share * peak)
    rates = np.asarray(learning_rate(config, num_steps)(np.arange(202)))
    ulp = np.spacing(np.float32(peak))
    assert rates.min() >= 0
    assert rates.max() <= np.float32(peak) + ulp
    assert rates[warmup] >= np.float32(peak) - 2 * ulp
    assert (rates[num_steps:] == np.float32(config.end_learning_rate)).all()
    assert (np.diff(rates[: warmup + 1]) > 0).all()
    assert (np.diff(rates[warmup:]) <= 2 * ulp).all()
    largest_step_up, largest_step_down = peak / max(warmup, 1), peak * np.pi / 2 / (num_steps - warmup)
    assert np.abs(np.diff(rates)).max() <= max(largest_step_up if warmup else 0, largest_step_down) + 2 * ulp


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: OptimConfig(learning_rate=0.1, end_learning_rate=0.2), "optim.end_learning_rate"),
        (lambda: OptimConfig(schedule="step", end_learning_rate=0.01), "schedule step"),
        (lambda: OptimConfig(step_factor=2.0), "optim.step_factor"),
        (lambda: Config(model=ModelConfig(scan_layers=True), optim=OptimConfig(name="lamb")), "model.scan_layers"),
    ],
)
def test_combinations_without_a_meaning_are_refused_by_name(build, named):
    with pytest.raises(ConfigError, match=named):
        build()


def test_the_average_of_a_short_run_is_not_made_of_its_start():
    """With 0.9999 the start would dominate for thousands of updates; the average covers a tenth of the run at most."""
    assert average_share(0.9999, jnp.asarray(0)) == np.float32(0.9)
    assert average_share(0.9999, jnp.asarray(10**6)) == np.float32(1e-4)
    shares = np.asarray(average_share(0.9999, jnp.arange(1000)), np.float64)
    weights = shares * np.append(np.cumprod((1 - shares)[::-1])[::-1][1:], 1)
    initial = np.prod(1 - shares)
    assert initial < 1e-15
    np.testing.assert_allclose(weights.sum() + initial, 1)
    assert weights @ np.arange(999, -1, -1) == pytest.approx(100, rel=0.05)
