"""Losses and correctness against float64 NumPy, at extremes, and on sharded examples and classes.

B: examples, K: classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.losses import (
    above,
    binary_cross_entropy,
    l2,
    sigmoid_cross_entropy,
    smooth,
    softmax_cross_entropy,
    top_k_correct,
)
from gnp_scale.mesh import BATCH, FSDP, TENSOR, P, sharding

pytestmark = pytest.mark.usefixtures("unoptimized")

RNG = np.random.default_rng(0)
LABEL_BxK = np.eye(5, dtype=np.float32)[[0, 3, 4, 1]]
LOGITS_BxK = {
    "ordinary": RNG.normal(size=(4, 5)).astype(np.float32),
    "equal": np.zeros((4, 5), np.float32),
    "extreme": (1e4 * RNG.choice([-1, 1], size=(4, 5))).astype(np.float32),
    "shifted": (1e4 + RNG.normal(size=(4, 5))).astype(np.float32),
}


def cross_entropy_float64(logits_BxK: np.ndarray, label_BxK: np.ndarray) -> np.ndarray:
    shifted_BxK = np.float64(logits_BxK) - np.float64(logits_BxK).max(axis=1, keepdims=True)
    log_probs_BxK = shifted_BxK - np.log(np.exp(shifted_BxK).sum(axis=1, keepdims=True))
    return -(label_BxK * log_probs_BxK).sum(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("case", LOGITS_BxK)
def test_cross_entropy_of_smoothed_labels_matches_float64(case, smoothing):
    label_BxK = smooth(jnp.asarray(LABEL_BxK), smoothing)
    expected_label_BxK = (1 - smoothing) * LABEL_BxK.astype(np.float64) + smoothing / 5
    np.testing.assert_allclose(label_BxK, expected_label_BxK, rtol=1e-6)
    loss_B = softmax_cross_entropy(jnp.asarray(LOGITS_BxK[case]), label_BxK)
    assert loss_B.dtype == jnp.float32
    np.testing.assert_allclose(loss_B, cross_entropy_float64(LOGITS_BxK[case], expected_label_BxK), rtol=2e-6)


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits_BxK = jnp.asarray(LOGITS_BxK["ordinary"], jnp.bfloat16)
    loss_B = softmax_cross_entropy(logits_BxK, jnp.asarray(LABEL_BxK))
    expected_B = cross_entropy_float64(np.asarray(logits_BxK.astype(jnp.float32)), LABEL_BxK)
    np.testing.assert_allclose(loss_B, expected_B, rtol=2e-6)


def test_gradient_of_cross_entropy_is_softmax_minus_label_at_extreme_logits():
    def total(logits_BxK):
        return softmax_cross_entropy(logits_BxK, jnp.asarray(LABEL_BxK)).sum()

    logits_BxK = LOGITS_BxK["extreme"]
    gradient_BxK = jax.grad(total)(jnp.asarray(logits_BxK))
    is_largest_BxK = logits_BxK == logits_BxK.max(axis=1, keepdims=True)
    np.testing.assert_allclose(gradient_BxK, is_largest_BxK / is_largest_BxK.sum(1, keepdims=True) - LABEL_BxK, 1e-6)


def sigmoid_float64(logits_BxK: np.ndarray, label_BxK: np.ndarray) -> np.ndarray:
    logits_BxK = np.float64(logits_BxK)
    return (np.logaddexp(0, logits_BxK) - label_BxK * logits_BxK).sum(axis=1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("case", LOGITS_BxK)
def test_sigmoid_losses_are_the_sum_and_the_mean_over_classes_of_float64(case, smoothing):
    label_BxK = smooth(jnp.asarray(LABEL_BxK), smoothing)
    logits_BxK = jnp.asarray(LOGITS_BxK[case])
    expected_B = sigmoid_float64(LOGITS_BxK[case], np.float64(label_BxK))
    np.testing.assert_allclose(sigmoid_cross_entropy(logits_BxK, label_BxK), expected_B, rtol=2e-6)
    np.testing.assert_allclose(binary_cross_entropy(logits_BxK, label_BxK), expected_B / 5, rtol=2e-6)
    assert binary_cross_entropy(logits_BxK.astype(jnp.bfloat16), label_BxK).dtype == jnp.float32


def test_the_mean_over_classes_is_the_loss_of_timm():
    """timm 1.0.31, BinaryCrossEntropy(smoothing=0.1), and with mixed labels target_threshold=0.2."""
    logits_BxK = jnp.asarray(np.random.default_rng(0).standard_normal((3, 5)) * 3, jnp.float32)
    label_BxK = jnp.asarray(np.eye(5)[[1, 4, 2]], jnp.float32)
    smoothed_B = binary_cross_entropy(logits_BxK, smooth(label_BxK, 0.1))
    np.testing.assert_allclose(smoothed_B, [0.9723741154634302, 2.344047623149624, 1.5765283950924713], rtol=2e-6)
    mixed_BxK = jnp.asarray([[0.7, 0.3, 0, 0, 0], [0, 0, 0.15, 0.85, 0], [0, 0.5, 0, 0, 0.5]], jnp.float32)
    answered_B = binary_cross_entropy(logits_BxK, above(mixed_BxK, 0.2))
    np.testing.assert_allclose(answered_B, [0.9073016196317202, 2.090683402544741, 0.991302575102819], rtol=2e-6)
    assert above(mixed_BxK, None) is mixed_BxK


def test_a_head_that_starts_at_the_share_of_a_class_has_the_entropy_of_it_as_loss():
    """So the first steps of a sigmoid loss do not only learn that most classes are wrong (arXiv 2006.07159)."""
    num_classes = 1000
    share = 1 / num_classes
    logits_BxK = jnp.full((2, num_classes), np.log(share / (1 - share)))
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    label_BxK = jax.nn.one_hot(jnp.asarray([3, 7]), num_classes)
    np.testing.assert_allclose(sigmoid_cross_entropy(logits_BxK, label_BxK), num_classes * entropy, rtol=1e-5)


NAN = float("nan")


@pytest.mark.parametrize(
    ("logits_K", "label", "k", "correct"),
    [
        ([0, 3, 1, 2], 1, 1, 1),
        ([0, 3, 1, 2], 3, 1, 0),
        ([0, 3, 1, 2], 3, 2, 1),
        ([0, 3, 1, 2], 0, 3, 0),
        ([0, 3, 1, 2], 0, 4, 1),
        ([0, 3, 1, 2], 0, 9, 1),
        ([7, 7, 7, 7], 0, 1, 1),
        ([7, 7, 7, 7], 1, 1, 0),
        ([7, 7, 7, 7], 1, 2, 1),
        ([NAN, NAN, NAN, NAN], 0, 1, 0),
        ([0, NAN, 0, 0], 1, 3, 0),
        ([3, NAN, 1, 0], 0, 1, 0),
        ([-np.inf, np.inf, 0, 0], 1, 1, 1),
        ([-np.inf, np.inf, 0, 0], 0, 3, 0),
    ],
)
def test_top_k_counts_guesses_with_ties_and_nan_against_the_label(logits_K, label, k, correct):
    correct_B = top_k_correct(jnp.asarray([logits_K], jnp.float32), jnp.asarray([label]), k)
    assert correct_B.dtype == jnp.float32
    assert correct_B.tolist() == [correct]


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_agrees_with_sorting_where_many_logits_are_equal(k):
    logits_BxK = jnp.asarray(RNG.integers(0, 4, size=(200, 7)), jnp.float32)
    label_B = jnp.asarray(RNG.integers(0, 7, size=200))
    guesses_Bxk = jax.lax.top_k(logits_BxK, k)[1]
    expected_B = (guesses_Bxk == label_B[:, None]).any(axis=1)
    np.testing.assert_array_equal(top_k_correct(logits_BxK, label_B, k), expected_B)


def test_l2_is_half_the_factor_times_the_squares_of_the_masked_leaves():
    params = {"layer": {"kernel": jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32), "bias": jnp.full(4, 1e3)}}
    mask = {"layer": {"kernel": True, "bias": False}}
    expected = 0.01 / 2 * np.square(np.float64(params["layer"]["kernel"])).sum()
    np.testing.assert_allclose(l2(params, 0.01, mask), expected, rtol=1e-6)
    gradient = jax.grad(l2)(params, 0.01, mask)
    np.testing.assert_allclose(gradient["layer"]["kernel"], 0.01 * params["layer"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(gradient["layer"]["bias"], np.zeros(4))
    assert l2(params, 0.01, jax.tree.map(lambda _: False, mask)) == 0


def test_l2_of_bfloat16_parameters_is_summed_in_float32():
    """Also over the many leaves of a deep network; the gradient of each leaf has the leaf's type."""
    leaves = [jnp.asarray(RNG.normal(size=(64, 64)), jnp.bfloat16) for _ in range(160)]
    value, gradient = jax.value_and_grad(l2)(leaves, 1e-2, [True] * len(leaves))
    expected = 1e-2 / 2 * sum(np.square(np.asarray(w, np.float64)).sum() for w in leaves)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for w, g in zip(leaves, gradient, strict=True):
        np.testing.assert_array_equal(g, (1e-2 * w.astype(jnp.float32)).astype(jnp.bfloat16))


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 8, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2)])
@pytest.mark.parametrize("classes", [None, TENSOR], ids=["whole classes", "sharded classes"])
def test_sharded_examples_and_classes_give_the_values_of_one_device(set_mesh, shape, classes):
    logits_BxK = RNG.integers(0, 4, size=(16, 6)).astype(np.float32)
    label_B = RNG.integers(0, 6, size=16)
    label_BxK = np.eye(6, dtype=np.float32)[label_B]

    @jax.jit
    def per_example(logits_BxK, label_BxK, label_B):
        return softmax_cross_entropy(logits_BxK, smooth(label_BxK, 0.1)), top_k_correct(logits_BxK, label_B, 2)

    expected = per_example(jnp.asarray(logits_BxK), jnp.asarray(label_BxK), jnp.asarray(label_B))
    set_mesh(*shape)
    on_BxK, on_B = sharding(P(BATCH, classes)), sharding(P(BATCH))
    sharded = per_example(
        jax.device_put(logits_BxK, on_BxK), jax.device_put(label_BxK, on_BxK), jax.device_put(label_B, on_B)
    )
    for values_B, expected_B in zip(sharded, expected, strict=True):
        assert jax.typeof(values_B).sharding.spec == P(BATCH)
        np.testing.assert_allclose(values_B, expected_B, rtol=1e-6)


def test_l2_of_sharded_parameters_has_gradients_sharded_like_them(set_mesh):
    set_mesh(1, 4, 2)
    w = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
    params = {"kernel": jax.device_put(w, sharding(P(FSDP, TENSOR)))}
    value, gradient = jax.jit(jax.value_and_grad(lambda p: l2(p, 0.1, {"kernel": True})))(params)
    np.testing.assert_allclose(value, 0.05 * np.square(np.float64(w)).sum(), rtol=1e-6)
    assert jax.typeof(gradient["kernel"]) == jax.typeof(params["kernel"])
