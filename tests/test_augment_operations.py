"""Each operation on bytes computes what Pillow does, on colour and on grey images."""

from importlib.metadata import distribution

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from gnp_scale.data.augment import colour, hue
from gnp_scale.data.augment.operations import SIGNED, apply_all, operation, stacked
from gnp_scale.data.augment.policies import RANDAUGMENT, magnitude
from gnp_scale.data.augment.three_augment import BLUR_RADIUS, blur, box_weights

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_LEVELS = 31
PHOTO = np.asarray(Image.open(distribution("scikit-learn").locate_file("sklearn/datasets/images/china.jpg")))
PHOTO = PHOTO[100:137, 200:243]
NOISE = np.random.default_rng(0).integers(0, 256, PHOTO.shape, np.uint8)
IMAGES = {"photo": PHOTO, "noise": NOISE, "grey": PHOTO[..., :1], "flat": np.full_like(PHOTO[..., :1], 77)}


def to_pillow(image_HxWxC: np.ndarray) -> Image.Image:
    return Image.fromarray(image_HxWxC[..., 0] if image_HxWxC.shape[-1] == 1 else image_HxWxC)


def of_pillow(image: Image.Image) -> np.ndarray:
    return np.asarray(image).reshape(image.height, image.width, -1)


def by_pillow(image: Image.Image, name: str, x: float) -> Image.Image:
    """What torchvision calls for this operation."""

    def moved(*matrix: float) -> Image.Image:
        return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)

    operations = {
        "Identity": lambda: image,
        "ShearX": lambda: moved(1, x, 0, 0, 1, 0),
        "ShearY": lambda: moved(1, 0, 0, x, 1, 0),
        "TranslateX": lambda: moved(1, 0, -int(x), 0, 1, 0),
        "TranslateY": lambda: moved(1, 0, 0, 0, 1, -int(x)),
        "Rotate": lambda: image.rotate(x),
        "Brightness": lambda: ImageEnhance.Brightness(image).enhance(1 + x),
        "Contrast": lambda: ImageEnhance.Contrast(image).enhance(1 + x),
        "Color": lambda: ImageEnhance.Color(image).enhance(1 + x),
        "Sharpness": lambda: ImageEnhance.Sharpness(image).enhance(1 + x),
        "Posterize": lambda: ImageOps.posterize(image, int(x)),
        "Solarize": lambda: ImageOps.solarize(image, x),
        "Invert": lambda: ImageOps.invert(image),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
    }
    return operations[name]()


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_operations_are_those_of_pillow_to_the_bit(image):
    height, width, _ = image.shape
    compiled = jax.jit(apply_all)
    for name in (*RANDAUGMENT, "Invert"):
        for level in (0, 3, 9, 17, 30):
            size = magnitude(name, level, NUM_LEVELS, height, width)
            for x in (size, -size) if name in SIGNED else (size,):
                expected = of_pillow(by_pillow(to_pillow(image), name, x))
                got = compiled(stacked([operation(name, x, height, width)]), image)
                np.testing.assert_array_equal(got, expected, err_msg=f"{name} {x}")


def test_a_blend_with_a_random_factor_is_that_of_pillow_but_for_one_byte_in_a_thousand():
    """Pillow's product is rounded to float32, ours to 2^-20."""
    num_different, factors = 0, np.random.default_rng(1).uniform(0, 2, 200)
    for factor in factors:
        got = colour.blend(jnp.int32(NOISE[::-1]), jnp.int32(NOISE), jnp.int32(round(factor * colour.UNIT)))
        expected = of_pillow(Image.blend(to_pillow(NOISE[::-1].copy()), to_pillow(NOISE), factor)).astype(int)
        assert np.abs(np.asarray(got) - expected).max() <= 1
        num_different += int((np.asarray(got) != expected).sum())
    assert num_different <= NOISE.size * len(factors) / 1000


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_the_histogram_by_products_is_that_by_indices(image):
    """TPUs use the products."""
    by_products, by_indices = (
        jax.jit(equalized)(image.astype(np.int32))
        for equalized in (colour.equalized_by_products, colour.equalized_by_indices)
    )
    np.testing.assert_array_equal(by_products, by_indices)


@pytest.mark.parametrize("radius", [*BLUR_RADIUS, 0.4, 0.9, 1.41, 1.42, 1.7])
def test_the_blur_is_that_of_pillow_to_the_bit(radius):
    compiled = jax.jit(blur)
    for image in (PHOTO, PHOTO[..., :1], PHOTO[:3, :2]):
        expected = of_pillow(to_pillow(image).filter(ImageFilter.GaussianBlur(radius)))
        np.testing.assert_array_equal(compiled(image, np.array(box_weights(radius), np.uint32)), expected)


def test_hues_are_those_of_pillow_but_for_one_step_in_a_hundred():
    """Pillow rounds a quotient to float32 before it rounds down, and gets one less where it is a whole number."""
    levels = np.arange(0, 256, 5)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(len(levels), -1, 3).astype(np.uint8)
    expected = np.moveaxis(np.asarray(to_pillow(colours).convert("HSV")).astype(int), -1, 0)
    got_hue, *got = jax.device_get(jax.jit(hue.to_hsv)(colours.astype(np.int32)))
    np.testing.assert_array_equal(got, expected[1:])
    assert set(np.unique(got_hue - expected[0])) <= {0, 1}
    assert (got_hue != expected[0]).mean() < 0.01


def test_colours_of_hues_are_those_of_pillow_to_the_bit():
    levels = np.arange(0, 256, 5)
    hsv = np.stack(np.meshgrid(np.arange(256), levels, levels), axis=-1).reshape(256, -1, 3).astype(np.uint8)
    expected = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    got = jax.jit(hue.from_hsv)(*np.moveaxis(hsv.astype(np.int32), -1, 0))
    np.testing.assert_array_equal(got, expected)
