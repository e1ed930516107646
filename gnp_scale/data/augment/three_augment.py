"""Three-augment of DeiT III (arXiv 2204.07118, section 4): grey, solarised or blurred, each for a third of the images.

H rows, W columns, C channels, Q quantiles.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.data.augment import colour
from gnp_scale.data.augment.mixing import NUM_QUANTILES
from gnp_scale.data.augment.operations import switch

SOLARIZE_THRESHOLD = 128
BLUR_RADIUS = (0.1, 2.0)
"""The least and the largest standard deviation of the blur, in pixels."""
_NUM_PASSES = 3
_WEIGHT_BITS = 24


def three_augment(key: jax.Array, image_HxWxC: jax.Array) -> jax.Array:
    """One of the three operations, with equal probability; a grey image of one channel stays as it is if it is made
    grey.
    """
    choice_key, radius_key = jax.random.split(key)
    weights_3 = jnp.array(_box_weights())[jax.random.randint(radius_key, (), 0, NUM_QUANTILES)]
    choice = jax.random.randint(choice_key, (), 0, 3)
    return switch(choice, (_grey, _solarize, blur), image_HxWxC, weights_3)


def blur(image_HxWxC: jax.Array, weights_3: jax.Array) -> jax.Array:
    """Pillow's `GaussianBlur`, to the bit: three box filters along the rows, then three along the columns.

    `weights_3` (uint32, in 2^-24) are those of a pixel, of its neighbours, and of theirs; `box_weights` makes them.
    """
    for axis in (1, 0):
        for _ in range(_NUM_PASSES):
            image_HxWxC = _box(image_HxWxC, weights_3, axis)
    return image_HxWxC


def box_weights(radius: float) -> list[int]:
    """The weights of a box filter, three of which make a blur of standard deviation `radius` (at most 2).

    The side is not a whole number: the outermost pixels count less (Gwosdek et al. 2011, "Theoretical foundations of
    Gaussian convolution by extended box filtering", equations 7, 11 and 14); in float32, as in Pillow.
    """
    variance = np.float32(radius) ** 2 / np.float32(_NUM_PASSES)
    whole = int((np.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = int(np.float32(2**_WEIGHT_BITS) / (2 * (whole + part) + 1))
    outer = (2**_WEIGHT_BITS - (2 * whole + 1) * inner) // 2
    return [*[inner] * (whole + 1), outer, 0][:3]


def _grey(image_HxWxC: jax.Array, weights_3: jax.Array) -> jax.Array:
    return jnp.broadcast_to(colour.grey(image_HxWxC), image_HxWxC.shape)


def _solarize(image_HxWxC: jax.Array, weights_3: jax.Array) -> jax.Array:
    return jnp.where(image_HxWxC >= SOLARIZE_THRESHOLD, 255 - image_HxWxC, image_HxWxC)


def _box(image_HxWxC: jax.Array, weights_3: jax.Array, axis: int) -> jax.Array:
    """One filter; beyond the border the outermost pixels repeat."""
    size = image_HxWxC.shape[axis]
    margin = [(2, 2) if dimension == axis else (0, 0) for dimension in range(3)]
    padded = jnp.pad(image_HxWxC, margin, mode="edge").astype(jnp.uint32)
    taps = [jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(5)]
    total = weights_3[0] * taps[2] + weights_3[1] * (taps[1] + taps[3]) + weights_3[2] * (taps[0] + taps[4])
    return ((total + 2 ** (_WEIGHT_BITS - 1)) >> _WEIGHT_BITS).astype(jnp.uint8)


@lru_cache
def _box_weights() -> np.ndarray:
    """The weights (uint32 Q x 3) of equally likely radii."""
    share_Q = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    low, high = BLUR_RADIUS
    return np.array([box_weights(radius) for radius in low + (high - low) * share_Q], np.uint32)
