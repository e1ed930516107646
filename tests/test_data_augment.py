"""Augmentation applies the drawn values, and the result is bitwise the same on every mesh."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding

from gnp_scale.config import DataConfig
from gnp_scale.data.augment import augment, normalise
from gnp_scale.data.augment.geometry import crop, flip
from gnp_scale.data.augment.mixing import cutmix_shares, mixup_shares
from gnp_scale.data.augment.repeats import repeated
from gnp_scale.data.dataset import Dataset, Split
from gnp_scale.mesh import batch_spec

RANDOM = np.random.default_rng(0)
# On 8 devices each holds one example, and compilers then choose other instructions than for several.
NUM_EXAMPLES, NUM_CLASSES = 8, 5
IMAGE_BxHxWxC = RANDOM.integers(0, 256, (NUM_EXAMPLES, 12, 10, 3), np.uint8)
LABEL_B = RANDOM.integers(0, NUM_CLASSES, NUM_EXAMPLES, np.int32)
SPLIT = Split(IMAGE_BxHxWxC, LABEL_B)
DATASET = Dataset("random", SPLIT, SPLIT, NUM_CLASSES, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
NORMALISED = (IMAGE_BxHxWxC / 255 - np.array(DATASET.mean)) / np.array(DATASET.std)
ONE_HOT = np.eye(NUM_CLASSES)[LABEL_B]
CONFIGS = {
    "plain": DataConfig(),
    "crop and flip": DataConfig(crop_padding=3, flip=True),
    "mixup": DataConfig(crop_padding=3, flip=True, mixup=0.3),
    "cutmix": DataConfig(crop_padding=3, flip=True, cutmix=0.7),
}
MESHES = {"1x8x1": (1, 8, 1), "8x1x1": (8, 1, 1), "1x4x2": (1, 4, 2), "2x2x2": (2, 2, 2)}


def augmented(config: DataConfig, mesh: jax.sharding.Mesh | None = None, seed: int = 1) -> dict[str, np.ndarray]:
    key_B = jax.random.split(jax.random.key(seed), NUM_EXAMPLES)
    batch = {"image": jnp.array(IMAGE_BxHxWxC), "label": jnp.array(LABEL_B), "key": key_B}
    if mesh is not None:
        batch = {name: jax.device_put(x, NamedSharding(mesh, batch_spec(x.ndim))) for name, x in batch.items()}
    result = jax.jit(partial(augment, config=config, dataset=DATASET))(batch)
    assert (jax.random.key_data(result.pop("key")) == jax.random.key_data(key_B)).all()
    if mesh is not None:
        assert {name: x.sharding.spec for name, x in result.items()} == {
            name: batch_spec(x.ndim) for name, x in result.items()
        }
    return jax.device_get(result)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(config, id=name, marks={"plain": (), "cutmix": pytest.mark.slow}.get(name, pytest.mark.long))
        for name, config in CONFIGS.items()
    ],
)
def test_the_result_does_not_depend_on_the_mesh(config: DataConfig, set_mesh):
    reference = augmented(config)
    assert reference["image"].dtype == reference["target"].dtype == np.float32
    for shape in ((1, 1, 1), *MESHES.values()):
        result = augmented(config, set_mesh(*shape))
        for name, expected in reference.items():
            np.testing.assert_array_equal(result[name], expected, err_msg=f"{name} on {shape}")


def test_without_augmentation_images_are_normalised_and_labels_one_hot():
    result = augmented(CONFIGS["plain"])
    np.testing.assert_allclose(result["image"], NORMALISED, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result["target"], ONE_HOT)
    np.testing.assert_array_equal(result["label"], LABEL_B)


def test_normalise_keeps_images_where_they_are(set_mesh):
    image = jax.device_put(IMAGE_BxHxWxC, NamedSharding(set_mesh(2, 2, 2), batch_spec(4)))
    result = jax.jit(partial(normalise, dataset=DATASET))(image)
    assert result.sharding.spec == batch_spec(4)
    np.testing.assert_allclose(result, NORMALISED, rtol=1e-5, atol=1e-6)


def test_normalise_gives_zero_mean_and_unit_deviation_for_the_statistics_of_the_images():
    statistics = [(IMAGE_BxHxWxC / 255).mean(axis=(0, 1, 2)), (IMAGE_BxHxWxC / 255).std(axis=(0, 1, 2))]
    mean, std = (tuple(statistic.tolist()) for statistic in statistics)
    image = normalise(jnp.array(IMAGE_BxHxWxC), Dataset("random", SPLIT, SPLIT, NUM_CLASSES, mean, std))
    np.testing.assert_allclose(np.mean(image, axis=(0, 1, 2)), np.zeros(3), atol=1e-5)
    np.testing.assert_allclose(np.std(image, axis=(0, 1, 2)), np.ones(3), atol=1e-5)


def test_crop_takes_the_window_of_the_reflected_image():
    offset_Bx2 = RANDOM.integers(0, 7, (NUM_EXAMPLES, 2))
    padded = np.pad(IMAGE_BxHxWxC, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="reflect")
    expected = [x[row : row + 12, column : column + 10] for x, (row, column) in zip(padded, offset_Bx2, strict=True)]
    np.testing.assert_array_equal(crop(jnp.array(IMAGE_BxHxWxC), jnp.array(offset_Bx2), 3), expected)


def test_flip_mirrors_the_chosen_images():
    flipped_B = RANDOM.integers(0, 2, NUM_EXAMPLES).astype(bool)
    expected = [x[:, ::-1] if flipped else x for x, flipped in zip(IMAGE_BxHxWxC, flipped_B, strict=True)]
    np.testing.assert_array_equal(flip(jnp.array(IMAGE_BxHxWxC), jnp.array(flipped_B)), expected)


def test_crop_and_flip_draw_every_window_and_both_sides():
    """Over many keys, every (row, column, side) of the 3 x 3 windows occurs, and nothing else."""
    ramp = np.arange(36, dtype=np.uint8).reshape(1, 6, 6, 1)
    dataset = Dataset("ramp", SPLIT, SPLIT, NUM_CLASSES, (0.0,), (1 / 255,))
    num_keys = 400
    batch = {
        "image": jnp.array(np.tile(ramp, (num_keys, 1, 1, 1))),
        "label": jnp.zeros(num_keys, jnp.int32),
        "key": jax.random.split(jax.random.key(0), num_keys),
    }
    result = augment(batch, DataConfig(crop_padding=1, flip=True), dataset)["image"]
    padded = np.pad(ramp[0, ..., 0], 1, mode="reflect")
    windows = [padded[row : row + 6, column : column + 6] for row in range(3) for column in range(3)]
    windows += [window[:, ::-1] for window in windows]
    images = np.rint(np.asarray(result)[..., 0]).astype(np.uint8)
    counts = [int((images == window[None]).all(axis=(1, 2)).sum()) for window in windows]
    assert sum(counts) == num_keys
    assert min(counts) > num_keys / 18 / 3


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_every_target_has_mass_one_on_two_classes(name: str):
    target_BxK = augmented(CONFIGS[name])["target"]
    np.testing.assert_allclose(target_BxK.sum(axis=1), np.ones(NUM_EXAMPLES), rtol=1e-6)
    assert (target_BxK >= 0).all()
    pairs = np.stack([LABEL_B, np.roll(LABEL_B, -1)], axis=1)
    mass = [target[sorted(set(pair))].sum() for target, pair in zip(target_BxK, pairs.tolist(), strict=True)]
    np.testing.assert_allclose(mass, np.ones(NUM_EXAMPLES), rtol=1e-6)


def test_mixup_is_the_weighted_mean_with_the_next_example():
    result = augmented(DataConfig(mixup=0.8))
    different = np.roll(LABEL_B, -1) != LABEL_B
    share_B = np.where(different, result["target"][np.arange(NUM_EXAMPLES), LABEL_B], np.nan)
    share = share_B[different][:, None, None, None]
    expected = share * NORMALISED[different] + (1 - share) * np.roll(NORMALISED, -1, axis=0)[different]
    np.testing.assert_allclose(result["image"][different], expected, rtol=1e-4, atol=1e-5)
    assert len(set(share_B[different].tolist())) == different.sum() > 3


def test_cutmix_replaces_one_box_by_the_next_example():
    result = augmented(DataConfig(cutmix=1.0))
    partner = np.roll(NORMALISED, -1, axis=0)
    own_BxHxW = np.isclose(result["image"], NORMALISED, atol=1e-5).all(axis=3)
    partners_BxHxW = np.isclose(result["image"], partner, atol=1e-5).all(axis=3)
    assert (own_BxHxW | partners_BxHxW).all()
    share_B = own_BxHxW.mean(axis=(1, 2))
    expected = share_B[:, None] * ONE_HOT + (1 - share_B[:, None]) * np.roll(ONE_HOT, -1, axis=0)
    np.testing.assert_allclose(result["target"], expected, atol=1e-6)
    for cut_HxW in ~own_BxHxW:
        rows, columns = cut_HxW.any(axis=1), cut_HxW.any(axis=0)
        np.testing.assert_array_equal(cut_HxW, rows[:, None] & columns[None, :])
    assert 0.1 < share_B.mean() < 0.9


@pytest.mark.parametrize("shares", [mixup_shares, cutmix_shares])
@pytest.mark.parametrize("concentration", [0.2, 1.0])
def test_shares_agree_between_pixels_and_target(shares, concentration: float):
    key_B = jax.random.split(jax.random.key(3), 200)
    draw = partial(shares, shape=(9, 7), concentration=concentration)
    share_BxHxW, share_B = jax.vmap(draw)(key_B)
    np.testing.assert_allclose(np.mean(share_BxHxW, axis=(1, 2)), share_B, rtol=1e-5, atol=1e-6)
    assert ((np.asarray(share_B) >= 0) & (np.asarray(share_B) <= 1)).all()
    assert np.std(share_B) > 0.1


def test_mixup_weights_follow_the_beta_distribution():
    key_B = jax.random.split(jax.random.key(4), 4000)
    _, share_B = jax.vmap(partial(mixup_shares, shape=(1, 1), concentration=0.5))(key_B)
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)).
    np.testing.assert_allclose((np.mean(share_B), np.var(share_B)), (0.5, 0.125), atol=0.01)


def test_each_example_follows_its_own_key():
    """Other keys for the other examples do not change this one."""
    config = CONFIGS["crop and flip"]
    batch = {"image": jnp.array(IMAGE_BxHxWxC), "label": jnp.array(LABEL_B)}
    key_B, other_B = (jax.random.split(jax.random.key(seed), NUM_EXAMPLES) for seed in (1, 2))
    mixed_B = jnp.concatenate([other_B[:5], key_B[5:6], other_B[6:]])
    first, second = (augment(batch | {"key": keys}, config, DATASET)["image"] for keys in (key_B, mixed_B))
    np.testing.assert_array_equal(first[5], second[5])
    assert not np.array_equal(first, second)


def test_repeats_are_spread_over_the_batch_and_nothing_is_left_out():
    batch_size, num_repeats = 12, 3
    place_TxB = repeated(np.arange(10 * batch_size), batch_size, num_repeats).reshape(10, batch_size)
    for place_B in place_TxB:
        assert (np.unique(place_B, return_counts=True)[1] == num_repeats).all()
        assert (place_B != np.roll(place_B, -1)).all()
    np.testing.assert_array_equal(np.unique(place_TxB), np.arange(10 * batch_size // num_repeats))
    np.testing.assert_array_equal(repeated(np.arange(7), batch_size, num_repeats=1), np.arange(7))
