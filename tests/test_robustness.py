"""Corrupted images and rounded kernels: each by its definition in NumPy.

B examples, V severities.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.sharpness import corruptions, robustness
from gnp_scale.sharpness.rounding import rounded

pytestmark = pytest.mark.usefixtures("unoptimized")


def rounded_in_numpy(w, axes, num_bits):
    highest = 2 ** (num_bits - 1) - 1
    scale = np.abs(w).max(axis=axes, keepdims=True) / np.float32(highest)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.rint(w / scale) * scale)


@pytest.mark.parametrize("num_bits", [8, 4])
def test_kernels_are_rounded_for_each_output_channel(num_bits):
    draws = np.random.default_rng(3)
    dense, query = (draws.standard_normal(shape).astype(np.float32) for shape in ((64, 5), (6, 2, 8)))
    dense[:, 2] = 0
    params = {"dense": {"kernel": dense, "bias": dense[0]}, "attention": {"query": {"kernel": query}}}
    found = jax.jit(partial(rounded, num_bits=num_bits))(params)
    np.testing.assert_allclose(found["dense"]["kernel"], rounded_in_numpy(dense, 0, num_bits), atol=1e-6)
    np.testing.assert_allclose(found["attention"]["query"]["kernel"], rounded_in_numpy(query, 0, num_bits), atol=1e-6)
    np.testing.assert_array_equal(found["dense"]["bias"], dense[0])
    assert len(np.unique(np.round(found["dense"]["kernel"][:, 0], 6))) <= 2**num_bits - 1


@pytest.fixture(scope="module")
def images():
    """Photographs of 3 channels with smooth parts and noise, much of it in the last, not square."""
    draws, (row, column) = np.random.default_rng(4), np.mgrid[:48, :64]
    smooth_HxWxC = np.stack([90 + row, 120 + column - row, 60 + row + column // 2], axis=2)
    return np.clip(
        smooth_HxWxC + np.array([1, 1, 1, 5])[:, None, None, None] * draws.integers(-20, 20, (4, 48, 64, 3)), 0, 255
    ).astype(np.uint8)


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_a_corruption_grows_with_its_severity_from_none(kind, images):
    """An image depends on nothing but itself and its number."""

    @jax.jit
    def change(image, severity, number_B):
        return corruptions.corrupt(kind, image, severity, robustness.keys(0, number_B, 0))

    results = [np.asarray(change(images, severity, jnp.arange(4))) for severity in corruptions.SEVERITIES]
    np.testing.assert_array_equal(results[0], images)
    distances_VxB = [((result - images.astype(float)) ** 2).mean(axis=(1, 2, 3)) for result in results]
    assert np.all(np.diff(distances_VxB, axis=0) >= 0)
    assert np.all(distances_VxB[1] > 0)
    assert np.all(distances_VxB[5] > distances_VxB[1])
    np.testing.assert_array_equal(change(images[2:3], 3, jnp.arange(2, 3)), results[3][2:3])


def test_corruptions_are_those_of_their_definitions(images):
    """Away from the limits of pixels: the brightness, the contrast, and the number of different rows and columns."""
    change = jax.jit(corruptions.corrupt, static_argnums=0)
    key_B = robustness.keys(0, jnp.arange(4), 0)
    x = images.astype(np.float64) / 255
    mean = x.mean(axis=(1, 2), keepdims=True)
    by_hand = {"contrast": (mean + 0.2 * (x - mean)), "brightness": np.clip(x + 0.3, 0, 1)}
    for kind, expected in by_hand.items():
        np.testing.assert_allclose(np.asarray(change(kind, images, 3, key_B)) / 255, expected, atol=0.5 / 255 + 1e-6)
    pixelated = np.asarray(change("pixelate", images, 5, key_B))
    blocks = x.reshape(4, 12, 4, 16, 4, 3).mean(axis=(2, 4)).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(pixelated / 255, blocks, atol=0.5 / 255 + 1e-6)
