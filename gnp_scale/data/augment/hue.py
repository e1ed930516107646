"""The hue of an image, turned in Pillow's byte form of HSV.

The divisions are in float32 and rounded down. Half a step is added to each numerator, so the exact quotient is far
enough from a whole number for float32, and the result does not depend on the compiler.

H rows, W columns; a colour image has 3 channels.
"""

import jax
import jax.numpy as jnp


def turn(image_HxWx3: jax.Array, shift: jax.Array) -> jax.Array:
    """The image (int32) with `shift` added to its hue, modulo 256: torchvision's `adjust_hue`.

    Pillow divides whole numbers in float32 where this is exact: its hue or saturation is lower by 1 for some colours.
    """
    hue, saturation, value = to_hsv(image_HxWx3.astype(jnp.int32))
    return from_hsv((hue + shift) & 255, saturation, value)


def to_hsv(image_HxWx3: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Hue, saturation and value (int32 H x W), each 0 to 255."""
    red, green, blue = (image_HxWx3[..., channel] for channel in range(3))
    value = jnp.maximum(red, jnp.maximum(green, blue))
    span = value - jnp.minimum(red, jnp.minimum(green, blue))
    # The hue in 1/6 of a turn is `angle / span`.
    angle = jnp.where(value == green, 2 * span + blue - red, 4 * span + red - green)
    angle = jnp.where(value == red, jnp.where(green >= blue, green - blue, 6 * span + green - blue), angle)
    hue = _quotient(85 * angle, 2 * span)
    saturation = _quotient(255 * span, value)
    return jnp.where(span > 0, hue, 0), jnp.where(span > 0, saturation, 0), value


def from_hsv(hue: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    """The image (int32 H x W x 3) of `to_hsv`."""
    sixth = 2 * hue // 85
    rest = 2 * hue - 85 * sixth
    falling = _rounded_share(value, 85 * (255 - saturation) + saturation * (85 - rest))
    rising = _rounded_share(value, 85 * (255 - saturation) + saturation * rest)
    lowest = _rounded_share(value, 85 * (255 - saturation))
    in_order = (value, falling, lowest, lowest, rising, value)
    sixth = sixth % 6
    channels = [_of_sixth(sixth, in_order[-turns:] + in_order[:-turns]) for turns in (6, 2, 4)]
    return jnp.stack(channels, axis=-1)


def _of_sixth(sixth: jax.Array, entries: tuple[jax.Array, ...]) -> jax.Array:
    return jnp.select([sixth == number for number in range(6)], entries)


def _quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """`numerator / denominator`, rounded down."""
    raised = (2 * numerator + 1).astype(jnp.float32)
    return (raised / (2 * jnp.maximum(denominator, 1)).astype(jnp.float32)).astype(jnp.int32)


def _rounded_share(value: jax.Array, share: jax.Array) -> jax.Array:
    """`value * share / (255 * 85)`, rounded; there are no ties."""
    whole = 255 * 85
    return (2 * value * share + whole) // (2 * whole)
