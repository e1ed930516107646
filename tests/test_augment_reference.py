"""Whole policies, colour jitter, mixing and erasing compute what torchvision and timm do from the same draws.

`fixtures/augmentation/make.py` made the reference.
"""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.config import DataConfig
from gnp_scale.data.augment import colour, erasing, jitter, mixing, policies
from gnp_scale.data.augment.halves import _mix
from gnp_scale.data.augment.operations import Operation, apply_all, rows

pytestmark = pytest.mark.usefixtures("unoptimized")

REFERENCE = np.load(Path(__file__).parent / "fixtures" / "augmentation" / "reference.npz", allow_pickle=False)
IMAGE = {"": REFERENCE["image/colour"], "_grey": REFERENCE["image/grey"]}


def assert_same_but_for_rounding(image, expected):
    """At most one level away, for one byte in twenty.

    torchvision's magnitudes are in float32. If that makes 0.4 a little smaller, a product that would be a whole number
    is one less.
    """
    distance = np.abs(np.asarray(image).astype(int) - expected.astype(int))
    assert distance.max() <= 1
    assert (distance > 0).mean() < 0.05


@pytest.mark.parametrize(("level", "kind"), [(9, ""), (23, "_grey")])
def test_randaugment_is_that_of_torchvision(level, kind):
    image, name = IMAGE[kind], f"randaugment_{level}{kind}"
    table = policies.randaugment_table(level, *image.shape[:2])
    compiled = jax.jit(apply_all)
    for draw, expected in zip(REFERENCE[f"{name}/draws"], REFERENCE[f"{name}/images"], strict=True):
        got = compiled(rows(table, draw @ (2, 1)), image)
        assert_same_but_for_rounding(got, expected)


@pytest.mark.parametrize("name", ["autoaugment_imagenet", "autoaugment_cifar10", "autoaugment_cifar10_grey"])
def test_every_sub_policy_of_autoaugment_is_that_of_torchvision(name):
    policy, is_grey, _ = name.partition("_grey")
    compiled = jax.jit(policies.sub_policy, static_argnums=1)
    for choice in range(25):
        applied, sign = REFERENCE[f"{name}/is_applied"][choice], REFERENCE[f"{name}/sign"][choice]
        got = compiled(IMAGE[is_grey], policy, choice, applied, sign)
        assert_same_but_for_rounding(got, REFERENCE[f"{name}/images"][choice])


def test_the_probabilities_of_autoaugment_are_those_of_its_paper():
    """The first sub-policy of each table, and one in the middle: the rest of a table has the same form."""
    cifar10, imagenet = policies.AUTOAUGMENT["autoaugment_cifar10"], policies.AUTOAUGMENT["autoaugment_imagenet"]
    assert cifar10[0] == (("Invert", 0.1, 0), ("Contrast", 0.2, 6))
    assert cifar10[14] == (("Solarize", 0.5, 2), ("Invert", 0.0, 0))
    assert imagenet[0] == (("Posterize", 0.4, 8), ("Rotate", 0.6, 9))
    assert imagenet[17] == (("Sharpness", 0.4, 7), ("Invert", 0.6, 0))


def test_colour_jitter_is_that_of_torchvision():
    """But for hues (see `test_augment_operations.py`), which later operations may enlarge."""
    compiled = jax.jit(partial(apply_all, functions=jitter.FUNCTIONS))
    num_far = 0
    for order, factors, expected in zip(
        *(REFERENCE[f"jitter/{x}"] for x in ("order", "factors", "images")), strict=True
    ):
        numbers = np.round(factors * colour.UNIT).astype(np.int32)
        operations = Operation(order, numbers[order, None])
        distance = np.abs(np.asarray(compiled(operations, IMAGE[""])).astype(int) - expected.astype(int))
        assert distance.max() <= 16
        num_far += (distance > 0).sum()
    assert num_far < 0.01 * REFERENCE["jitter/images"].size


def test_mixing_is_that_of_timm(monkeypatch):
    """Each draw comes from the reference, in the place of a random generator."""
    config = DataConfig(mixup=0.8, cutmix=1.0, mixup_probability=0.7)
    names = ("pairs", "labels", "weight", "is_cut", "is_mixed", "centre", "images", "targets")
    for pair, label, *draws, image, target in zip(*(REFERENCE[f"mixing/{name}"] for name in names), strict=True):
        for own in range(2):
            weight, is_cut, is_mixed, centre = (draw[own] for draw in draws)
            monkeypatch.setattr(mixing, "beta_quantiles", lambda _, weight=weight: np.array([weight], np.float32))
            integers, switches = iter([0, 0, *centre]), iter([is_cut, is_mixed])
            monkeypatch.setattr(jax.random, "randint", lambda *_, integers=integers: next(integers))
            monkeypatch.setattr(jax.random, "bernoulli", lambda *_, switches=switches: jnp.bool(next(switches)))
            share_HxW, share = mixing.switched_shares(jax.random.key(0), (8, 8), config)
            np.testing.assert_allclose(_mix(share_HxW[..., None], pair[own], pair[1 - own]), image[own], rtol=1e-5)
            one_hot = np.eye(5)[label]
            np.testing.assert_allclose(_mix(share, one_hot[own], one_hot[1 - own]), target[own], rtol=1e-5, atol=1e-7)


def test_erased_rectangles_are_those_of_timm():
    height_N, width_N = erasing.sides(*REFERENCE["erasing/quantiles"].T, (30, 40))
    fits_N = (np.asarray(height_N) < 30) & (np.asarray(width_N) < 40)
    sides_Nx2 = np.stack([height_N, width_N], axis=1) * fits_N[:, None]
    np.testing.assert_array_equal(sides_Nx2, REFERENCE["erasing/sides"])
    assert 0 < fits_N.mean() < 1
