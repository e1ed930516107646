"""Colour jitter: brightness, contrast, saturation and hue in random order, as torchvision's `ColorJitter`.

H rows, W columns, C channels, J operations that are on.
"""

import jax
import jax.numpy as jnp

from gnp_scale.config import DataConfig
from gnp_scale.data.augment import colour, hue
from gnp_scale.data.augment.operations import Operation, apply_all, brightness, contrast, saturation


def color_jitter(key: jax.Array, image_HxWxC: jax.Array, config: DataConfig) -> jax.Array:
    """The image with a random factor in [1 - x, 1 + x] for each of the first three options, and a random hue.

    Each operation rounds to bytes, as on images of Pillow.
    """
    order_key, number_key = jax.random.split(key)
    limits = (config.brightness, config.contrast, config.saturation, config.hue)
    chosen = [place for place, limit in enumerate(limits) if limit]
    half_width_J = jnp.array([round(limits[place] * colour.UNIT) for place in chosen])
    # A factor of 1 and a turn by 0 change nothing.
    neutral_J = jnp.array([0 if FUNCTIONS[place] is turn_hue else colour.UNIT for place in chosen])
    number_J = neutral_J + jax.random.randint(number_key, (len(chosen),), -half_width_J, half_width_J + 1)
    order_J = jax.random.permutation(order_key, len(chosen))
    operations = Operation(order_J, number_J[order_J, None])
    return apply_all(operations, image_HxWxC, [FUNCTIONS[place] for place in chosen])


def turn_hue(image_HxWx3: jax.Array, part_1: jax.Array) -> jax.Array:
    """Turns all hues by this part of a circle, in 1 / `colour.UNIT`."""
    return hue.turn(image_HxWx3, jax.lax.div(255 * part_1[0], colour.UNIT))


FUNCTIONS = (brightness, contrast, saturation, turn_hue)
"""The operations, in torchvision's order."""
