"""The options of augmentation: what they do to a batch, on every mesh, and which combinations are refused."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from PIL import Image
from test_data_augment import DATASET, LABEL_B, NORMALISED, NUM_EXAMPLES, ONE_HOT, IMAGE_BxHxWxC, augmented

from gnp_scale.config import Config, ConfigError, DataConfig, ModelConfig, TrainConfig
from gnp_scale.data.augment import augment, finish, prepare
from gnp_scale.data.augment.erasing import AREA, LEAST_ASPECT, noise, random_erasing, rectangle
from gnp_scale.data.augment.jitter import color_jitter
from gnp_scale.data.augment.mixing import switched_shares
from gnp_scale.data.augment.policies import randaugment
from gnp_scale.data.augment.three_augment import three_augment
from gnp_scale.mesh import batch_spec
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_examples

pytestmark = pytest.mark.usefixtures("unoptimized")

JITTER = DataConfig(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
MIXED = DataConfig(mixup=0.8, cutmix=1.0, mixup_probability=0.7)
ALL = DataConfig(
    crop_padding=2,
    flip=True,
    policy="randaugment",
    brightness=0.4,
    hue=0.1,
    mixup=0.8,
    cutmix=1.0,
    mixup_probability=0.7,
    random_erasing=0.5,
    random_erasing_mode="pixel",
    cutout=4,
)
OPERATIONS = {
    "randaugment": partial(randaugment, num_ops=2, level=9),
    "three_augment": three_augment,
    "color_jitter": partial(color_jitter, config=JITTER),
}


def keys(num_keys: int, seed: int = 5) -> jax.Array:
    return jax.random.split(jax.random.key(seed), num_keys)


@pytest.mark.slow
def test_with_all_options_an_example_follows_its_key_and_its_partner_on_every_mesh(set_mesh, optimized):
    """Another mesh changes no bit; other keys of other examples change none of this one."""
    batch = {"image": jnp.array(IMAGE_BxHxWxC), "label": jnp.array(LABEL_B)}
    compiled = jax.jit(partial(augment, config=ALL, dataset=DATASET))
    own_B, other_B = (keys(NUM_EXAMPLES, seed) for seed in (1, 2))
    expected = compiled(batch | {"key": own_B})
    other = compiled(batch | {"key": jnp.concatenate([other_B[:4], own_B[4:6], other_B[6:]])})
    on_mesh = augmented(ALL, set_mesh(replica=2, fsdp=2, tensor=2), seed=1)
    for name in ("image", "target"):
        np.testing.assert_array_equal(on_mesh[name], expected[name])
        np.testing.assert_array_equal(other[name][4], expected[name][4])
    assert not np.array_equal(other["image"], expected["image"])


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_batch_at_once_gives_the_bits_of_a_loop(operation, optimized):
    """Accelerators compute all branches for all images, CPUs one branch for one image."""
    key_B = keys(NUM_EXAMPLES)
    at_once = jax.jit(jax.vmap(operation))(key_B, IMAGE_BxHxWxC)
    in_a_loop = jax.jit(lambda *rows: jax.lax.map(lambda row: operation(*row), rows))(key_B, IMAGE_BxHxWxC)
    assert at_once.dtype == jnp.uint8
    np.testing.assert_array_equal(at_once, in_a_loop)
    assert (np.asarray(at_once) != IMAGE_BxHxWxC).any(axis=(1, 2, 3)).sum() > NUM_EXAMPLES / 2


def test_three_augment_makes_grey_solarised_and_blurred_images_equally_often():
    num_images, image = 300, IMAGE_BxHxWxC[0]
    key_N = keys(num_images)
    images = np.asarray(
        jax.jit(lambda key_N: jax.lax.map(lambda key: three_augment(key, jnp.array(image)), key_N))(key_N)
    )
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None].repeat(3, axis=2)
    solarised = np.where(image >= 128, 255 - image, image)
    num_grey, num_solarised = ((images == expected).all(axis=(1, 2, 3)).sum() for expected in (grey, solarised))
    blurred = images[~((images == grey) | (images == solarised)).all(axis=(1, 2, 3))]
    assert min(num_grey, num_solarised, len(blurred)) > num_images / 4
    assert num_grey + num_solarised + len(blurred) == num_images
    # A blur keeps the mean and takes away from the deviation, by different amounts.
    np.testing.assert_allclose(blurred.mean(axis=(1, 2, 3)), image.mean(), rtol=0.05)
    assert (blurred.std(axis=(1, 2, 3)) < image.std()).all()
    assert len(np.unique(blurred.std(axis=(1, 2, 3)))) > len(blurred) / 2


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_one_colour_option_changes_images_in_both_directions(name):
    config = replace(DataConfig(), **{name: 0.3})
    image = np.full((4, 4, 3), (150, 100, 50), np.uint8)
    image[:2] = (30, 60, 120)
    jittered = jax.jit(jax.vmap(lambda key: color_jitter(key, jnp.array(image), config)))(keys(200)).astype(int)
    first_N = np.asarray(jittered)[:, 3, 0, 1]
    assert first_N.min() < 100 < first_N.max()
    if name == "brightness":
        assert 70 <= first_N.min() < 75
        assert 125 < first_N.max() <= 130


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_random_erasing_replaces_one_rectangle_with_its_probability(mode):
    num_images, shape = 400, (20, 30, 3)
    config = DataConfig(random_erasing=0.4, random_erasing_mode=mode)
    erased = jax.jit(jax.vmap(lambda key: random_erasing(key, jnp.full(shape, 9.0), config)))
    images = np.asarray(erased(keys(num_images)))
    covered = (images != 9).any(axis=-1)
    assert covered.any(axis=(1, 2)).mean() == pytest.approx(0.4, abs=0.08)
    new = images[covered]
    if mode == "const":
        assert (new == 0).all()
    else:
        assert abs(new.mean()) < 0.2
    values = [len(np.unique(image[place])) for image, place in zip(images, covered, strict=True) if place.any()]
    assert max(values) == {"const": 1, "rand": 3}.get(mode, max(values))
    assert min(values) >= {"const": 1, "rand": 2}.get(mode, 20)


def test_erased_rectangles_have_the_ranges_of_the_paper():
    covered = np.asarray(jax.jit(jax.vmap(partial(rectangle, shape=(40, 50))))(keys(500)))
    height, width = (covered.any(axis=axis).sum(axis=1) for axis in (2, 1))
    np.testing.assert_array_equal(covered.sum(axis=(1, 2)), height * width)
    area, aspect = height * width / 2000, height / width
    assert AREA[0] * 0.8 < area.min() < 0.04
    assert 0.25 < area.max() < AREA[1] * 1.05
    assert LEAST_ASPECT * 0.85 < aspect.min() < 0.4
    assert 2.5 < aspect.max() < 1.15 / LEAST_ASPECT


def test_noise_has_the_moments_of_the_normal_distribution():
    sample = np.asarray(noise(jax.random.key(0), (1_000_000,)))
    moments = [np.mean(sample**power) for power in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3 - 1.2 / 8], atol=0.05)


@pytest.mark.parametrize(("size", "half"), [(4, 2), (5, 3), (1, 1)])
def test_cutout_sets_a_square_to_the_mean(size, half):
    """At a border at least the half with the centre remains."""
    result = augmented(DataConfig(cutout=size))["image"]
    covered = (result == 0).all(axis=-1)
    np.testing.assert_array_equal(np.isclose(result, NORMALISED, atol=1e-5).all(axis=-1), ~covered)
    height, width = (covered.any(axis=axis).sum(axis=1) for axis in (2, 1))
    np.testing.assert_array_equal(covered.sum(axis=(1, 2)), height * width)
    assert ((height >= half) & (height <= size) & (width >= half) & (width <= size)).all()
    assert (height == size).any()


def test_mixup_and_cutmix_alternate_and_spare_some_examples():
    draw = jax.jit(
        jax.vmap(partial(switched_shares, shape=(9, 7), config=replace(MIXED, mixup_switch_probability=0.3)))
    )
    share_BxHxW, share_B = (np.asarray(shares) for shares in draw(keys(2000)))
    is_spared = share_B == 1
    is_cut = ((share_BxHxW == 0) | (share_BxHxW == 1)).all(axis=(1, 2)) & ~is_spared
    np.testing.assert_allclose((is_spared.mean(), is_cut.mean()), (0.3 + 0.7 * 0.02, 0.7 * 0.3), atol=0.05)
    np.testing.assert_allclose(share_BxHxW.mean(axis=(1, 2)), share_B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_before", [True, False])
def test_examples_are_not_mixed_after_the_end(is_before):
    batch = {"image": jnp.array(IMAGE_BxHxWxC), "label": jnp.array(LABEL_B), "key": keys(NUM_EXAMPLES)}
    config = DataConfig(mixup=0.8)
    examples = jax.jit(partial(prepare, config=config))(batch, mixes=jnp.bool(is_before))
    assert (np.asarray(examples["next_image"]) == IMAGE_BxHxWxC).all() == (not is_before)
    result = jax.jit(partial(finish, config=config, dataset=DATASET))(examples)
    assert np.array_equal(result["target"], ONE_HOT) == (not is_before)
    assert np.array_equal(result["image"], augmented(DataConfig())["image"]) == (not is_before)


def test_the_end_of_mixing_is_a_part_of_the_steps(set_mesh):
    mesh = set_mesh()
    data = DataConfig(batch_size=8, mixup=0.2, mixup_end=0.6)
    task = Task.of(Config(data=data, model=ModelConfig("vit_mu", patch_size=4), train=TrainConfig(num_steps=5)))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), np.uint8)
    batch = {"image": jnp.array(image), "label": jnp.arange(8)}
    batch = {name: jax.device_put(x, NamedSharding(mesh, batch_spec(x.ndim))) for name, x in batch.items()}
    examples = jax.jit(partial(make_examples, task))
    is_mixed = [not np.array_equal(examples(batch, jnp.int32(step))["next_image"], image) for step in range(5)]
    assert is_mixed == [True, True, True, False, False]


@pytest.mark.parametrize("name", ["saturation", "hue"])
def test_colours_of_grey_images_are_refused(name):
    batch = {"image": jnp.array(IMAGE_BxHxWxC[..., :1]), "label": jnp.array(LABEL_B), "key": keys(NUM_EXAMPLES)}
    with pytest.raises(ConfigError, match=f"data.{name} is 0.1, but .* 1 channel and no colour: set it to 0") as error:
        prepare(batch, replace(DataConfig(), **{name: 0.1}))
    assert "\n" not in str(error.value)


def test_a_square_larger_than_the_image_is_refused():
    with pytest.raises(ConfigError, match=r"data.cutout is 11, but .* 12 x 10 pixels: set it to at most 10"):
        augmented(DataConfig(cutout=11))


@pytest.mark.parametrize("policy", ["autoaugment_cifar10", "randaugment", "three_augment"])
def test_policies_take_grey_images(policy):
    batch = {"image": jnp.array(IMAGE_BxHxWxC[..., :1]), "label": jnp.array(LABEL_B), "key": keys(NUM_EXAMPLES)}
    image = jax.jit(partial(prepare, config=DataConfig(policy=policy)))(batch)["image"]
    assert (image.shape, image.dtype) == ((*IMAGE_BxHxWxC.shape[:3], 1), jnp.uint8)
    assert not np.array_equal(image, batch["image"])


WITHOUT_EFFECT = {
    "RandAugment's magnitude with three-augment": ({"policy": "three_augment", "randaugment_magnitude": 5}, "randaug"),
    "RandAugment's number without a policy": ({"randaugment_num_ops": 3}, "data.policy randaugment"),
    "a switch without CutMix": ({"mixup": 0.2, "mixup_switch_probability": 0.1}, "data.mixup and data.cutmix above 0"),
    "an end without mixing": ({"mixup_end": 0.5}, "data.mixup or data.cutmix above 0"),
    "a probability without mixing": ({"mixup_probability": 0.5}, "data.mixup or data.cutmix above 0"),
    "a fill without erasing": ({"random_erasing_mode": "pixel"}, "data.random_erasing above 0"),
    "no mixing by its probability": ({"mixup": 0.2, "mixup_probability": 0.0}, "set data.mixup and data.cutmix to 0"),
    "a switch that never switches": ({"mixup": 0.2, "cutmix": 1.0, "mixup_switch_probability": 0.0}, "set the other"),
    "half a circle and more": ({"hue": 0.6}, "between 0 and 0.5"),
    "a magnitude above the last": ({"policy": "randaugment", "randaugment_magnitude": 31}, "between 0 and 30"),
    "no operation": ({"policy": "randaugment", "randaugment_num_ops": 0}, "between 1 and 10"),
    "a probability above 1": ({"random_erasing": 1.5}, "between 0 and 1"),
    "two policies": ({"policy": "randaugment three_augment"}, "one of 'none', "),
}


@pytest.mark.parametrize(("values", "part"), WITHOUT_EFFECT.values(), ids=WITHOUT_EFFECT)
def test_values_without_a_meaning_are_one_line(values, part):
    with pytest.raises(ConfigError) as error:
        DataConfig(**values)
    assert part in str(error.value)
    assert "\n" not in str(error.value)
