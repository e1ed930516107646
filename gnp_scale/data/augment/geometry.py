"""Where the pixels of an image come from: crop, flip, and affine maps as Pillow computes them.

B examples, H rows, W columns, C channels.
"""

import jax
import jax.numpy as jnp

FRACTION_BITS = 16
"""An entry of a matrix is a multiple of 1/65536, as in Pillow."""


def crop(image_BxHxWxC: jax.Array, offset_Bx2: jax.Array, padding: int) -> jax.Array:
    """A window of the original size, at `offset` in the images with a border of `padding` reflected pixels."""
    padded = jnp.pad(image_BxHxWxC, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")

    def window(image: jax.Array, offset_2: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset_2[0], offset_2[1], 0), image_BxHxWxC.shape[1:])

    return jax.vmap(window)(padded, offset_Bx2)


def flip(image_BxHxWxC: jax.Array, flipped_B: jax.Array) -> jax.Array:
    """The images, mirrored left to right where `flipped`."""
    return jnp.where(flipped_B[:, None, None, None], image_BxHxWxC[:, :, ::-1], image_BxHxWxC)


def affine(image_HxWxC: jax.Array, matrix_6: jax.Array) -> jax.Array:
    """The pixel at (x, y) is that of `image` at (a x + b y + c, d x + e y + f), rounded down; black outside.

    `matrix_6` holds a, b, c, d, e, f in units of 1/65536 (int32); `fixed_point` makes it. This is Pillow's
    `Image.transform` with `NEAREST`, to the bit.
    """
    height, width, num_channels = image_HxWxC.shape
    a, b, c, d, e, f = matrix_6
    x_1xW, y_Hx1 = jnp.arange(width)[None, :], jnp.arange(height)[:, None]
    source_x_HxW = (a * x_1xW + b * y_Hx1 + c) >> FRACTION_BITS
    source_y_HxW = (d * x_1xW + e * y_Hx1 + f) >> FRACTION_BITS
    is_inside_HxW = (source_x_HxW >= 0) & (source_x_HxW < width) & (source_y_HxW >= 0) & (source_y_HxW < height)
    place_N = jnp.where(is_inside_HxW, source_y_HxW * width + source_x_HxW, 0).reshape(-1)
    pixels = image_HxWxC.reshape(-1, num_channels).at[place_N].get(mode="promise_in_bounds").reshape(image_HxWxC.shape)
    return jnp.where(is_inside_HxW[..., None], pixels, 0)
