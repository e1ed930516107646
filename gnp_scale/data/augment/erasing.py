"""Random erasing and cutout: rectangles of normalised images that are replaced, after mixing.

H rows, W columns, C channels, Q quantiles, T tries.
"""

import math
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import DataConfig
from gnp_scale.data.augment.mixing import NUM_QUANTILES

AREA = (0.02, 1 / 3)
"""The least and the largest part of an image that is erased, as in timm; the paper's largest is 0.4."""
LEAST_ASPECT = 0.3
"""The least ratio of height and width; the largest is its inverse."""
NUM_TRIES = 10


def random_erasing(key: jax.Array, image_HxWxC: jax.Array, config: DataConfig) -> jax.Array:
    """Erases a random rectangle with probability `config.random_erasing` (arXiv 1708.04896, algorithm 1, as in timm).

    Logarithm of the ratio and area are uniform. The first of ten rectangles that fits is erased; none if none fits.
    """
    is_on_key, box_key, fill_key = jax.random.split(key, 3)
    height, width, num_channels = image_HxWxC.shape
    is_erased_HxW = rectangle(box_key, (height, width)) & jax.random.bernoulli(is_on_key, config.random_erasing)
    fill_shape = {"const": None, "rand": (1, 1, num_channels), "pixel": image_HxWxC.shape}
    shape = fill_shape[config.random_erasing_mode]
    return jnp.where(is_erased_HxW[..., None], 0.0 if shape is None else noise(fill_key, shape), image_HxWxC)


def cutout(key: jax.Array, image_HxWxC: jax.Array, size: int) -> jax.Array:
    """A square of `size` pixels around a random pixel becomes 0, the mean (arXiv 1708.04552, section 3.2).

    It may lie partly outside of the image.
    """
    height, width, _ = image_HxWxC.shape
    centre_2 = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
    is_cut_HxW = _covered((height, width), centre_2 - size // 2, jnp.array([size, size]))
    return jnp.where(is_cut_HxW[..., None], 0.0, image_HxWxC)


def rectangle(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """True inside the rectangle (bool H x W)."""
    size_key, place_key = jax.random.split(key)
    area_T, aspect_T = jax.random.randint(size_key, (2, NUM_TRIES), 0, NUM_QUANTILES)
    height_T, width_T = sides(area_T, aspect_T, shape)
    fits_T = (height_T < shape[0]) & (width_T < shape[1])
    first = jnp.argmax(fits_T)
    length_2 = jnp.stack([height_T[first], width_T[first]])
    start_2 = jax.random.randint(place_key, (2,), 0, jnp.maximum(jnp.array(shape) - length_2, 0) + 1)
    return _covered(shape, start_2, length_2) & fits_T[first]


def sides(area: jax.Array, aspect: jax.Array, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Height and width for these quantiles of the area and of the ratio of height and width, rounded.

    Square roots come from tables, and one product is rounded once: the same on every mesh.
    """
    root_area_Q, root_aspect_Q = _roots(math.prod(shape))
    root_area = jnp.array(root_area_Q)[area]
    height, width = (jnp.rint(root_area * jnp.array(root_Q)[aspect]) for root_Q in (root_aspect_Q, 1 / root_aspect_Q))
    return height.astype(jnp.int32), width.astype(jnp.int32)


def noise(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Nearly normal numbers of mean 0 and deviation 1 (float32): sums of eight random bytes.

    A sum is a whole number and is multiplied once, so it does not depend on the mesh. The normal distribution of
    `jax.random` passes through a logarithm, which compilers round in different ways.
    """
    bits_2x = jax.random.bits(key, (2, *shape), jnp.uint32)
    total = sum(((bits_2x >> (8 * number)) & 255 for number in range(1, 4)), start=bits_2x & 255).astype(jnp.int32)
    deviation = math.sqrt(8 * (256**2 - 1) / 12)
    return (jnp.sum(total, axis=0) - 8 * 255 // 2).astype(jnp.float32) * jnp.float32(1 / deviation)


def _covered(shape: tuple[int, int], start_2: jax.Array, length_2: jax.Array) -> jax.Array:
    places = (jnp.arange(size) - start for size, start in zip(shape, start_2, strict=True))
    covered_H, covered_W = ((place >= 0) & (place < length) for place, length in zip(places, length_2, strict=True))
    return covered_H[:, None] & covered_W[None, :]


@lru_cache
def _roots(num_pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Square roots of equally likely areas (in pixels) and ratios (float32 Q)."""
    share_Q = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    interpolate = partial(np.interp, share_Q, (0, 1))
    log_limit = -math.log(LEAST_ASPECT)
    area_Q, log_aspect_Q = interpolate([part * num_pixels for part in AREA]), interpolate([-log_limit, log_limit])
    return np.sqrt(area_Q).astype(np.float32), np.exp(log_aspect_Q / 2).astype(np.float32)
