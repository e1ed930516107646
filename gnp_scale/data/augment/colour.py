"""Colour operations on the bytes of one image, with the results of Pillow.

Everything here is integer arithmetic, or a division in float32 whose result is exact after rounding down: so no
compiler changes a byte, on any mesh.

H rows, W columns, C channels (1 or 3), N pixels.
"""

import jax
import jax.numpy as jnp
from gnp_kernels.dispatch import platform

UNIT_BITS = 20
UNIT = 2**UNIT_BITS
"""Factors are multiples of 1 / UNIT."""
_BIAS = 2**7
"""Half of the largest error of a rounded factor: products that are whole numbers stay so."""


def blend(degenerate_HxWxC: jax.Array, image_HxWxC: jax.Array, factor: jax.Array) -> jax.Array:
    """`degenerate + factor * (image - degenerate)`, rounded down and cut to bytes (int32); `factor` in 1 / UNIT.

    This is Pillow's `Image.blend`. A byte differs by 1 for about one random factor and pixel in 5,000.
    """
    value = (degenerate_HxWxC << UNIT_BITS) + factor * (image_HxWxC - degenerate_HxWxC) + _BIAS
    return jnp.clip(value >> UNIT_BITS, 0, 255)


def grey(image_HxWxC: jax.Array) -> jax.Array:
    """The brightness of each pixel (int32 H x W x 1), as Pillow's `convert("L")`."""
    image_HxWxC = image_HxWxC.astype(jnp.int32)
    if image_HxWxC.shape[-1] == 1:
        return image_HxWxC
    red, green, blue = (image_HxWxC[..., channel : channel + 1] for channel in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def rounded_mean(grey_HxWx1: jax.Array) -> jax.Array:
    """The mean brightness, rounded (int32), of at most four million pixels."""
    return (2 * jnp.sum(grey_HxWx1) + grey_HxWx1.size) // (2 * grey_HxWx1.size)


def smooth(image_HxWxC: jax.Array) -> jax.Array:
    """The image (int32) under Pillow's filter `SMOOTH`: the centre counts 5, its neighbours 1; the border stays."""
    height, width, _ = image_HxWxC.shape
    rows = _sum_of_three(jnp.pad(image_HxWxC, ((1, 1), (1, 1), (0, 0))), axis=0)
    total = _sum_of_three(rows, axis=1) + 4 * image_HxWxC
    # The exact value is never a whole number, so rounding errors have no effect.
    smoothed = ((2 * total + 13).astype(jnp.float32) * jnp.float32(1 / 26)).astype(jnp.int32)
    y_Hx1, x_1xW = jnp.arange(height)[:, None], jnp.arange(width)[None, :]
    is_inside_HxW = (y_Hx1 > 0) & (y_Hx1 < height - 1) & (x_1xW > 0) & (x_1xW < width - 1)
    return jnp.where(is_inside_HxW[..., None], smoothed, image_HxWxC)


def stretched(image_HxWxC: jax.Array) -> jax.Array:
    """The image (int32) with each channel stretched to the range 0 to 255: Pillow's `autocontrast`."""
    low_1x1xC, high_1x1xC = (end(image_HxWxC, axis=(0, 1), keepdims=True) for end in (jnp.min, jnp.max))
    span = jnp.maximum(high_1x1xC - low_1x1xC, 1)
    # Half more than a whole number over at most 255 is far enough from the next one for float32.
    ratio = ((image_HxWxC - low_1x1xC) * 255 + 0.5).astype(jnp.float32) / span.astype(jnp.float32)
    return jnp.where(high_1x1xC > low_1x1xC, ratio.astype(jnp.int32), image_HxWxC)


def equalized(image_HxWxC: jax.Array) -> jax.Array:
    """The image (int32) with a flat histogram in each channel: Pillow's `equalize`."""
    equalized = equalized_by_products if platform() == "tpu" else equalized_by_indices
    return equalized(image_HxWxC)


def equalized_by_indices(image_HxWxC: jax.Array) -> jax.Array:
    """`equalized` with a scatter that counts values, and a gather from the table."""
    num_channels = image_HxWxC.shape[-1]
    place_HxWxC = image_HxWxC + 256 * jnp.arange(num_channels)[None, None, :]
    count = jnp.zeros(256 * num_channels, jnp.int32).at[place_HxWxC].add(1, mode="promise_in_bounds")
    table_Cx256 = jax.vmap(_equalizing)(count.reshape(num_channels, 256))
    return table_Cx256.reshape(-1).at[place_HxWxC].get(mode="promise_in_bounds")


def equalized_by_products(image_HxWxC: jax.Array) -> jax.Array:
    """`equalized` for TPUs, where products of matrices cost less than indices; exact below 2^24 pixels.

    A value is a pair of half bytes, both one-hot: their product counts pairs, and another selects from the table.
    """
    value_CxN = jnp.moveaxis(image_HxWxC, -1, 0).reshape(image_HxWxC.shape[-1], -1)
    half_16 = jnp.arange(16)[None, None, :]
    high_CxNx16, low_CxNx16 = (half[..., None] == half_16 for half in (value_CxN >> 4, value_CxN & 15))
    count_Cx16x16 = _product("cnh,cnl->chl", high_CxNx16, low_CxNx16).astype(jnp.int32)
    table_Cx256 = jax.vmap(_equalizing)(count_Cx16x16.reshape(-1, 256))
    row_CxNx16 = _product("cnh,chl->cnl", high_CxNx16, table_Cx256.reshape(-1, 16, 16))
    entry_CxN = jnp.sum(jnp.where(low_CxNx16, row_CxNx16, 0), axis=2)
    return jnp.moveaxis(entry_CxN.reshape(-1, *image_HxWxC.shape[:2]), 0, -1).astype(jnp.int32)


def _product(formula: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """A product of whole numbers up to 255, exact in bfloat16, with sums in float32."""
    return jnp.einsum(
        formula, left.astype(jnp.bfloat16), right.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    )


def _equalizing(count_256: jax.Array) -> jax.Array:
    """The table of one channel; that of no change if it would divide by 0."""
    value_256 = jnp.arange(256)
    highest = jnp.max(jnp.where(count_256 > 0, value_256, 0))
    step = (jnp.sum(count_256) - count_256[highest]) // 255
    below_256 = jnp.cumsum(count_256) - count_256
    table_256 = jnp.minimum((step // 2 + below_256) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table_256, value_256)


def _sum_of_three(padded: jax.Array, axis: int) -> jax.Array:
    size = padded.shape[axis] - 2
    first, second, third = (jax.lax.slice_in_dim(padded, start, start + size, axis=axis) for start in range(3))
    return first + second + third
