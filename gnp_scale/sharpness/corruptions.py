"""Common corruptions of images, each with a severity from 0 (none) to 5.

The kinds and most strengths are those of ImageNet-C (arXiv 1903.12261); the arithmetic is our own, and deterministic.
B examples, H rows, W columns, C channels; R is H or W.
"""

from functools import partial

import jax
import jax.numpy as jnp

SEVERITIES = (0, 1, 2, 3, 4, 5)
_NOISE = (0.0, 0.08, 0.12, 0.18, 0.26, 0.38)
"""Standard deviation, of pixels in [0, 1]."""
_BLUR = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0)
"""Standard deviation in pixels, of images of `_USUAL_SIDE` pixels; it grows with the square root of the side."""
_USUAL_SIDE = 224
_OWN_VARIANCE = 1 / 12
"""Of the area of a pixel, which is added, so that the images of the smallest sides are blurred too."""
_CONTRAST = (1.0, 0.4, 0.3, 0.2, 0.1, 0.05)
"""Factor of the differences from the mean of a channel."""
_BRIGHTNESS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
"""Added to pixels in [0, 1]."""
_PIXELATE = (1.0, 0.6, 0.5, 0.4, 0.3, 0.25)
"""Share of the rows and columns that are left."""


def corrupt(kind: str, image_BxHxWxC: jax.Array, severity: jax.Array, key_B: jax.Array) -> jax.Array:
    """The images (uint8) with a corruption of `KINDS`; severity 0 leaves them as they are.

    An image depends only on itself, the severity and its key. The same key draws the same noise for each severity.
    """
    pixel_BxHxWxC = image_BxHxWxC.astype(jnp.float32) / 255
    changed = jax.vmap(partial(KINDS[kind], severity=severity))(pixel_BxHxWxC, key_B)
    return jnp.round(255 * jnp.clip(changed, 0, 1)).astype(jnp.uint8)


def _noise(pixel_HxWxC: jax.Array, key: jax.Array, severity: jax.Array) -> jax.Array:
    return pixel_HxWxC + jnp.array(_NOISE)[severity] * jax.random.normal(key, pixel_HxWxC.shape)


def _blur(pixel_HxWxC: jax.Array, key: jax.Array, severity: jax.Array) -> jax.Array:
    """The weights of pixels outside of the image are left out."""
    side = min(pixel_HxWxC.shape[:2])
    variance = jnp.array(_BLUR)[severity] ** 2 * side / _USUAL_SIDE + _OWN_VARIANCE

    def weights(num: int) -> jax.Array:
        distance_RxR = jnp.arange(num)[:, None] - jnp.arange(num)[None, :]
        weight_RxR = jnp.exp(-(distance_RxR**2) / (2 * variance))
        weight_RxR = jnp.where(severity == 0, distance_RxR == 0, weight_RxR)
        return weight_RxR / jnp.sum(weight_RxR, axis=1, keepdims=True)

    return _on_rows_and_columns(pixel_HxWxC, *map(weights, pixel_HxWxC.shape[:2]))


def _contrast(pixel_HxWxC: jax.Array, key: jax.Array, severity: jax.Array) -> jax.Array:
    mean_1x1xC = jnp.mean(pixel_HxWxC, axis=(0, 1), keepdims=True)
    return mean_1x1xC + jnp.array(_CONTRAST)[severity] * (pixel_HxWxC - mean_1x1xC)


def _brightness(pixel_HxWxC: jax.Array, key: jax.Array, severity: jax.Array) -> jax.Array:
    return pixel_HxWxC + jnp.array(_BRIGHTNESS)[severity]


def _pixelate(pixel_HxWxC: jax.Array, key: jax.Array, severity: jax.Array) -> jax.Array:
    """The mean over blocks, which have equal sizes up to one row or column."""

    def means(num: int) -> jax.Array:
        num_blocks = jnp.maximum(1, jnp.floor(num * jnp.array(_PIXELATE)[severity]).astype(jnp.int32))
        block_R = jnp.arange(num) * num_blocks // num
        is_same_RxR = (block_R[:, None] == block_R[None, :]).astype(jnp.float32)
        return is_same_RxR / jnp.sum(is_same_RxR, axis=1, keepdims=True)

    return _on_rows_and_columns(pixel_HxWxC, *map(means, pixel_HxWxC.shape[:2]))


def _on_rows_and_columns(pixel_HxWxC: jax.Array, rows_HxH: jax.Array, columns_WxW: jax.Array) -> jax.Array:
    formula = "hr,rcx,wc->hwx"
    return jnp.einsum(formula, rows_HxH, pixel_HxWxC, columns_WxW, precision=jax.lax.Precision.HIGHEST)


KINDS = {
    "gaussian_noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "brightness": _brightness,
    "pixelate": _pixelate,
}
"""By name."""
