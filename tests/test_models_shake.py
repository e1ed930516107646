"""Shake-Shake and ShakeDrop: the coefficients of the forward and the backward pass."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.mesh import AXES, P
from gnp_scale.models.shake import _scaled, shake_drop
from gnp_scale.models.shake import shake_shake as mix

NUM_EXAMPLES = 20_000


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
