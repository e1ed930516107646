"""Shake-Shake and ShakeDrop: the coefficients of both passes, and when gradients are those of the computed loss."""

import math
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp_scale.config import ModelConfig
from gnp_scale.gnp import Gnp, penalize
from gnp_scale.mesh import AXES, P
from gnp_scale.models import pyramidnet, registry, shake_shake
from gnp_scale.models.shake import _scaled, shake_drop
from gnp_scale.models.shake import shake_shake as mix
from gnp_scale.monitoring.flops import flops

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_EXAMPLES = 20_000
STEP = 1e-3
SHAKE_SHAKE = ModelConfig("shake_shake_26_2x32d")
SHAKE_DROP = ModelConfig("pyramidnet_272_200", shake_drop=0.9)
NETWORKS = pytest.mark.parametrize("network", [SHAKE_SHAKE, SHAKE_DROP], ids=lambda config: config.name)


@pytest.fixture
def small_layouts(monkeypatch):
    monkeypatch.setitem(shake_shake.LAYOUTS, SHAKE_SHAKE.name, (8, 4))
    monkeypatch.setitem(pyramidnet.LAYOUTS, SHAKE_DROP.name, (pyramidnet.Bottleneck, 11, 6))


def keys(seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), NUM_EXAMPLES)


def coefficients(fn, *values: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """The output of `fn` for each example, if its inputs are `values`, and its derivative along each input."""
    out_B, backward = jax.vjp(fn, *(jnp.full(NUM_EXAMPLES, float(value)) for value in values))
    return np.asarray(out_B), [np.asarray(gradient) for gradient in backward(jnp.ones(NUM_EXAMPLES))]


def assert_uniform(values: np.ndarray, low: float, high: float) -> None:
    """By the largest distance of the distributions: 1.95 / sqrt(n) has a probability of 0.001 (Kolmogorov)."""
    expected = (np.arange(len(values)) + 0.5) / len(values)
    assert np.abs((np.sort(values) - low) / (high - low) - expected).max() < 1.95 / math.sqrt(len(values))


def test_published_shake_shake_draws_each_pass_of_each_example_anew():
    a, (b, one_minus_b) = coefficients(partial(mix, key_B=keys(), gradient="published"), 1, 0)
    assert_uniform(a, 0, 1)
    assert_uniform(b, 0, 1)
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(NUM_EXAMPLES)
    np.testing.assert_array_equal(one_minus_b, 1 - b)
    one_minus_a, _ = coefficients(partial(mix, key_B=keys(), gradient="published"), 0, 1)
    np.testing.assert_array_equal(one_minus_a, 1 - a)


def test_published_shake_drop_shakes_the_same_examples_in_both_passes():
    a, (b,) = coefficients(partial(shake_drop, rate=0.3, key_B=keys(), gradient="published"), 1)
    is_shaken = a != 1
    np.testing.assert_array_equal(b != 1, is_shaken)
    assert np.mean(is_shaken) == pytest.approx(0.3, abs=5 * math.sqrt(0.3 * 0.7 / NUM_EXAMPLES))
    assert_uniform(a[is_shaken], -1, 1)
    assert_uniform(b[is_shaken], 0, 1)
    assert abs(np.corrcoef(a[is_shaken], b[is_shaken])[0, 1]) < 5 / math.sqrt(is_shaken.sum())


@pytest.mark.parametrize("fn", [mix, partial(shake_drop, rate=0.3)], ids=["shake_shake", "shake_drop"])
def test_consistent_gradients_have_the_coefficients_of_the_published_forward_pass(fn):
    values = (1, 0) if fn is mix else (1,)
    published, _ = coefficients(partial(fn, key_B=keys(), gradient="published"), *values)
    a, (b, *_) = coefficients(partial(fn, key_B=keys(), gradient="consistent"), *values)
    np.testing.assert_array_equal(a, published)
    np.testing.assert_array_equal(b, a)


def test_without_keys_the_coefficients_are_the_means():
    half, (b, c) = coefficients(partial(mix, key_B=None, gradient="published"), 1, 0)
    assert set(half) == set(b) == set(c) == {0.5}
    mean, (b,) = coefficients(partial(shake_drop, rate=0.25, key_B=None, gradient="published"), 1)
    assert set(mean) == set(b) == {0.75}


def test_derivatives_of_a_scaled_branch_in_float64_are_the_backward_coefficients():
    with jax.enable_x64():
        x_BxN, dx_BxN, forward_B, backward_B = (
            jax.random.normal(jax.random.key(n), shape, jnp.float64)
            for n, shape in enumerate([(3, 5)] * 2 + [(3,)] * 2)
        )
        out, backward = jax.vjp(_scaled, x_BxN, forward_B, backward_B)
        np.testing.assert_array_equal(out, x_BxN * forward_B[:, None])
        np.testing.assert_array_equal(backward(dx_BxN)[0], dx_BxN * backward_B[:, None])
        _, tangent = jax.jvp(lambda x: _scaled(x, forward_B, backward_B), (x_BxN,), (dx_BxN,))
        np.testing.assert_array_equal(tangent, dx_BxN * backward_B[:, None])


def loss_of(config: ModelConfig):
    """A loss of parameters and keys, with parameters and keys."""
    model = registry.create(config, (8, 8, 3), 10, 16)
    params, batch_stats = jax.jit(model.init)(jax.random.key(0))
    image = jax.random.normal(jax.random.key(1), (16, 8, 8, 3))
    weight = jax.random.normal(jax.random.key(2), (16, 10))

    def loss(params, key_B):
        return jnp.mean(weight * model.network(params, batch_stats)(image, train=True, key_B=key_B))

    return loss, params, jax.random.split(jax.random.key(3), 16)


@pytest.mark.slow
@pytest.mark.parametrize(
    "network",
    [SHAKE_SHAKE, pytest.param(SHAKE_DROP, marks=pytest.mark.long)],
    ids=lambda config: config.name,
)
def test_only_consistent_gradients_agree_with_finite_differences(network, small_layouts):
    """The derivative of the loss along its gradient is the norm of the gradient."""
    errors = {}
    for gradient in ("published", "consistent"):
        loss, params, key_B = loss_of(replace(network, shake_gradient=gradient))
        value_and_grad = jax.jit(jax.value_and_grad(loss))
        grads = value_and_grad(params, key_B)[1]
        length = optax.tree.norm(grads)
        up, down = (
            value_and_grad(optax.tree.add_scale(params, step / length, grads), key_B)[0] for step in (STEP, -STEP)
        )
        errors[gradient] = abs((up - down) / (2 * STEP) / length - 1)
    # The loss has a kink wherever the input of a ReLU changes its sign.
    assert errors["consistent"] < 0.02
    assert errors["published"] > 0.1


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [SHAKE_SHAKE, pytest.param(SHAKE_DROP, marks=pytest.mark.long)], ids=lambda config: config.name
)
def test_both_gradients_of_a_step_have_the_same_coefficients(network, small_layouts):
    """With a tiny step between them, the two gradients are equal: other coefficients would turn the second one."""
    loss, params, key_B = loss_of(network)
    step = jax.jit(penalize(loss, Gnp(r=1e-5, alpha=0.5)))
    one, other = step(params, key_B), step(params, key_B[::-1])
    assert one.telemetry["cosine"] > 0.99
    assert optax.tree.vdot(one.grad, other.grad) < 0.8 * optax.tree.norm(one.grad) * optax.tree.norm(other.grad)


def test_coefficients_do_not_depend_on_the_mesh(set_mesh):
    key_B = jax.random.split(jax.random.key(0), 8)
    x_BxN = jnp.ones((8, 3))
    expected = mix(x_BxN, -x_BxN, key_B, "published"), shake_drop(x_BxN, 0.5, key_B, "published")
    set_mesh(replica=2, fsdp=2, tensor=2)
    x_BxN, key_B = jax.sharding.reshard(x_BxN, P(AXES, None)), jax.sharding.reshard(key_B, P(AXES))
    got = mix(x_BxN, -x_BxN, key_B, "published"), shake_drop(x_BxN, 0.5, key_B, "published")
    for a, b in zip(got, expected, strict=True):
        assert jax.typeof(a).sharding == jax.typeof(x_BxN).sharding
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "published"),
    [("shake_shake_26_2x96d", 3.777e9), pytest.param("pyramidnet_272_200", 4.489e9, marks=pytest.mark.slow)],
)
def test_number_of_multiply_adds_is_the_published_one(name, published):
    """Of one image, counted by PyTorch with the zeros around images, which are up to a tenth and not counted here."""
    model = registry.create(ModelConfig(name), (32, 32, 3), 10, 1)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    state = jax.eval_shape(model.init, jax.random.key(0))
    num_flops = flops(lambda params, stats, image: model.network(params, stats)(image, train=False), *state, image)
    assert 0.9 * published < num_flops / 2 < published
