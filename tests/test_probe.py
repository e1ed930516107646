"""The probes of features: nearest neighbours are exact, the linear classifier is the optimum, on every mesh."""

import jax
import numpy as np
import pytest

from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data import sources
from gnp_scale.evaluation import knn, linear, logistic
from gnp_scale.evaluation.features import SHARDED, Features
from gnp_scale.mesh import P, sharding
from gnp_scale.run.stages import Stages

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(params=[(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str)
def on_mesh(request, set_mesh):
    return set_mesh(*request.param)


def features(x_NxD, label_N, batch_size=64, *, is_used_N=None):
    """As `collect` returns them: padded to whole batches with copies of the last example, which do not count."""
    num = len(label_N)
    place = np.minimum(np.arange(-(-num // batch_size) * batch_size), num - 1).reshape(-1, batch_size)
    mask = np.ones(num, np.float32) if is_used_N is None else is_used_N.astype(np.float32)
    mask_TxB = mask[place] * (np.arange(place.size).reshape(place.shape) < num)
    x_TxBxD = np.where(mask_TxB[..., None] > 0, x_NxD[place], 0)
    arrays = x_TxBxD.astype(np.float32), label_N[place].astype(np.int32), mask_TxB.astype(np.float32)
    specs = P(*SHARDED, None), SHARDED, SHARDED
    return Features(*(jax.device_put(x, sharding(spec)) for x, spec in zip(arrays, specs, strict=True)))


@pytest.fixture(scope="module")
def digits():
    """The pixels of 250 training and 120 test images as features, with labels; some are the same in all images."""
    dataset = sources.load(DataConfig())
    splits = (dataset.train, 250), (dataset.test, 120)
    return [(split.image[:num].reshape(num, -1).astype(np.float64), split.label[:num]) for split, num in splits]


def neighbours_of(x_NxD, label_N, query_QxD, k, num_classes):
    """The guesses of an implementation in float64 with a loop over the queries."""
    unit_NxD = x_NxD / np.linalg.norm(x_NxD, axis=1, keepdims=True)
    guesses = []
    for query_D in query_QxD / np.linalg.norm(query_QxD, axis=1, keepdims=True):
        similarity_N = unit_NxD @ query_D
        nearest = np.argsort(-similarity_N, kind="stable")[:k]
        votes = np.bincount(label_N[nearest], np.exp(similarity_N[nearest] / 0.07), minlength=num_classes)
        guesses.append(votes.argmax())
    return np.array(guesses)


def test_nearest_neighbours_vote_as_in_float64(on_mesh, digits):
    """With examples that do not count, among them the padding of both splits."""
    (x_NxD, label_N), (query_QxD, answer_Q) = digits
    is_used_N = np.arange(len(label_N)) % 7 != 3
    found = knn.knn_top1(features(x_NxD, label_N, is_used_N=is_used_N), features(query_QxD, answer_Q), Stages())
    for k in (10, 20):
        guesses = neighbours_of(x_NxD[is_used_N], label_N[is_used_N], query_QxD, k, 10)
        assert found[k] == np.mean(guesses == answer_Q)


def test_of_equally_near_images_the_first_votes(on_mesh):
    """All 40 are equally near, and the first 10 and 20 decide, wherever they lie. A tie of votes goes to the lowest."""
    label_N = np.array([5] * 10 + [3] * 10 + [1] * 20)
    train = features(np.ones((40, 4)), label_N, batch_size=8)
    assert knn.knn_top1(train, features(np.ones((3, 4)), np.array([5, 5, 3]), 8), Stages()) == {10: 2 / 3, 20: 1 / 3}


def test_with_fewer_images_than_k_all_vote(on_mesh):
    """Padding has no vote: the two images of class 1 win against one of class 0."""
    train = features(np.eye(3) + 1, np.array([0, 1, 1]), batch_size=8)
    assert knn.knn_top1(train, features(np.ones((1, 3)), np.array([1]), 8), Stages()) == {10: 1.0, 20: 1.0}


def optimum(x_NxD, label_N, strength):
    """Scikit-learn's, in float64."""
    from sklearn.linear_model import LogisticRegression  # it takes seconds

    settings = {"C": 1 / (strength * len(label_N)), "tol": 1e-7, "max_iter": 2000}
    return LogisticRegression(**settings).fit(x_NxD, label_N)


def standard_scaler(x_NxD):
    from sklearn.preprocessing import StandardScaler

    return StandardScaler().fit(x_NxD)


def loss(x_NxD, label_N, strength, kernel_DxK, bias_K):
    """What it minimises."""
    kernel_DxK, bias_K = np.asarray(kernel_DxK, np.float64), np.asarray(bias_K, np.float64)
    logits_NxK = x_NxD @ kernel_DxK + bias_K
    right_N = logits_NxK[np.arange(len(label_N)), label_N]
    return np.mean(np.logaddexp.reduce(logits_NxK, axis=1) - right_N) + strength / 2 * np.sum(kernel_DxK**2)


def test_the_linear_classifier_is_the_optimum_that_scikit_learn_finds(on_mesh, digits):
    (x_NxD, label_N), (test_NxD, answer_N) = digits
    train, test, scaler = features(x_NxD, label_N), features(test_NxD, answer_N), standard_scaler(x_NxD)
    scale = logistic.standard_scale(train)
    for strength in (1e-1, 1e-4):
        found = logistic.fit(train, scale, train.mask, strength, logistic.zeros(64, 10))
        oracle = optimum(scaler.transform(x_NxD), label_N, strength)
        ours, best = (
            loss(scaler.transform(x_NxD), label_N, strength, *classifier)
            for classifier in (found, (oracle.coef_.T, oracle.intercept_))
        )
        np.testing.assert_allclose(ours, best, rtol=1e-4)
        num_right = round(oracle.score(scaler.transform(test_NxD), answer_N) * len(answer_N))
        assert float(logistic.num_right(found, scale, test, test.mask)) == num_right


def test_the_strength_is_chosen_on_held_out_images_and_used_on_all(on_mesh, digits, monkeypatch):
    """As scikit-learn does it, with a third of the labels at random, where neither weak nor strong is the best. Class 9
    has no training image."""
    monkeypatch.setattr(linear, "STRENGTHS", (10.0, 1e-1, 1e-4))
    (x_NxD, label_N), (test_NxD, answer_N) = digits
    draws = np.random.default_rng(0)
    label_N = np.where(draws.random(len(label_N)) < 1 / 3, draws.integers(0, 9, len(label_N)), label_N)
    train = features(x_NxD, label_N, is_used_N=label_N != 9)
    found = linear.linear_probe(train, features(test_NxD, answer_N), 10, len(answer_N), Stages())

    is_held_out = np.asarray(linear._held_out(train)).reshape(-1)[: len(label_N)] > 0
    is_fit = ~is_held_out & (label_N != 9)
    scaler = standard_scaler(x_NxD[label_N != 9])
    x_NxD, test_NxD = scaler.transform(x_NxD), scaler.transform(test_NxD)
    scores = {
        strength: optimum(x_NxD[is_fit], label_N[is_fit], strength).score(x_NxD[is_held_out], label_N[is_held_out])
        for strength in linear.STRENGTHS
    }
    assert found.strength == max(scores, key=scores.get) == 1e-1
    np.testing.assert_allclose(found.held_out_top1, scores[found.strength])
    on_all = optimum(x_NxD[label_N != 9], label_N[label_N != 9], found.strength).predict(test_NxD)
    assert found.top1 == np.mean(on_all == answer_N)
    np.testing.assert_array_equal(found.guesses.guess, on_all)


@pytest.mark.slow
def test_a_single_class_is_no_error(set_mesh):
    set_mesh()
    alone = features(np.random.default_rng(0).standard_normal((40, 5)), np.zeros(40, int), 8)
    assert linear.linear_probe(alone, alone, 1, 40, Stages())[:3] == (1.0, 1.0, 1.0)


def test_a_tenth_is_held_out_in_every_class_in_whatever_order(set_mesh):
    set_mesh()
    for label_N in (np.arange(500) % 10, np.arange(500) // 50):
        is_held_out = np.asarray(linear._held_out(features(np.ones((500, 1)), label_N))).reshape(-1)[:500] > 0
        counts = np.bincount(label_N[is_held_out], minlength=10)
        assert counts.min() >= 4
        assert counts.max() <= 6
        assert set(np.diff(np.flatnonzero(is_held_out)).tolist()) == {5, 8, 13}


def test_too_few_images_are_refused(set_mesh):
    set_mesh()
    few = features(np.ones((5, 2)), np.arange(5) % 2, 8)
    with pytest.raises(ConfigError, match=r"has 5 usable training images, .*: probe on a data set with at least 9"):
        linear.linear_probe(few, few, 2, 5, Stages())
