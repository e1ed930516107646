"""Where the pixels of an image come from: crop and flip.

B examples, H rows, W columns, C channels.
"""

import jax
import jax.numpy as jnp


def crop(image_BxHxWxC: jax.Array, offset_Bx2: jax.Array, padding: int) -> jax.Array:
    """A window of the original size, at `offset` in the images with a border of `padding` reflected pixels."""
    padded = jnp.pad(image_BxHxWxC, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")

    def window(image: jax.Array, offset_2: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset_2[0], offset_2[1], 0), image_BxHxWxC.shape[1:])

    return jax.vmap(window)(padded, offset_Bx2)


def flip(image_BxHxWxC: jax.Array, flipped_B: jax.Array) -> jax.Array:
    """The images, mirrored left to right where `flipped`."""
    return jnp.where(flipped_B[:, None, None, None], image_BxHxWxC[:, :, ::-1], image_BxHxWxC)
