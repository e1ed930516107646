"""The operations of AutoAugment and RandAugment on the bytes of one image, each as a function and whole numbers.

The numbers are made on the host, in the float64 arithmetic of Pillow and torchvision. The devices compute with whole
numbers only (`colour.py`, `geometry.py`). Operations that share a function share its cost under `vmap`, where a
`switch` computes all of its functions.

H rows, W columns, C channels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.data.augment import colour, geometry

type Function = Callable[[jax.Array, jax.Array], jax.Array]
"""The image after one operation, from the image and numbers."""


class Operation(NamedTuple):
    """One operation, or a table of them, in NumPy or on a device."""

    function: Any
    """Its place in `FUNCTIONS`."""
    numbers_6: Any
    """What that function is given."""


def nothing(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """The image."""
    return image_HxWxC


def brightness(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """A blend with black; the first number is the factor in 1 / `colour.UNIT`, here and in the next three."""
    image = image_HxWxC.astype(jnp.int32)
    return colour.blend(jnp.zeros_like(image), image, numbers_6[0])


def contrast(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """A blend with the mean brightness."""
    mean = colour.rounded_mean(colour.grey(image_HxWxC))
    return colour.blend(mean[None, None, None], image_HxWxC.astype(jnp.int32), numbers_6[0])


def saturation(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """A blend with the grey image."""
    return colour.blend(colour.grey(image_HxWxC), image_HxWxC.astype(jnp.int32), numbers_6[0])


def sharpness(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """A blend with the smoothed image."""
    image = image_HxWxC.astype(jnp.int32)
    return colour.blend(colour.smooth(image), image, numbers_6[0])


def change_bits(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """Keeps the bits of the first number, and inverts values from the second one on."""
    kept = image_HxWxC & numbers_6[0].astype(jnp.uint8)
    return jnp.where(kept >= numbers_6[1], 255 - kept, kept)


def stretch(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """Autocontrast."""
    return colour.stretched(image_HxWxC.astype(jnp.int32))


def equalize(image_HxWxC: jax.Array, numbers_6: jax.Array) -> jax.Array:
    """A flat histogram."""
    return colour.equalized(image_HxWxC.astype(jnp.int32))


FUNCTIONS = (nothing, geometry.affine, brightness, contrast, saturation, sharpness, change_bits, stretch, equalize)
_FUNCTION_OF = {
    **dict.fromkeys(("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"), geometry.affine),
    "Brightness": brightness,
    "Contrast": contrast,
    "Color": saturation,
    "Sharpness": sharpness,
    "Identity": nothing,
    "AutoContrast": stretch,
    "Equalize": equalize,
    **dict.fromkeys(("Posterize", "Solarize", "Invert"), change_bits),
}
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
"""Operations whose magnitude gets a random sign."""


def apply_all(operations: Operation, image_HxWxC: jax.Array, functions: Sequence[Function] = FUNCTIONS) -> jax.Array:
    """The image (uint8) after all operations of a table, which number `functions`. A loop compiles one switch."""

    def apply(image: jax.Array, operation: Operation) -> tuple[jax.Array, None]:
        return switch(operation.function, functions, image, operation.numbers_6), None

    return jax.lax.scan(apply, image_HxWxC, operations)[0]


def switch(choice: jax.Array, functions: Sequence[Function], image_HxWxC: jax.Array, numbers: jax.Array) -> jax.Array:
    """The image (uint8) after `functions[choice]`."""
    as_bytes = [lambda *args, function=function: function(*args).astype(jnp.uint8) for function in functions]
    return jax.lax.switch(choice, as_bytes, image_HxWxC, numbers)


def operation(name: str, magnitude: float, height: int, width: int) -> Operation:
    """The operation that torchvision calls `name`, with its magnitude there, for images of this size."""
    function = _FUNCTION_OF[name]
    numbers = {
        geometry.affine: lambda: _matrix(name, magnitude, height, width),
        change_bits: lambda: _bits(name, magnitude),
    }.get(function, lambda: [round((1 + magnitude) * colour.UNIT)])()
    padded = np.zeros(6, np.int32)
    padded[: len(numbers)] = numbers
    return Operation(FUNCTIONS.index(function), padded)


def stacked(rows: list[Operation]) -> Operation:
    """A table, whose first dimension numbers the operations."""
    return Operation(np.array([row.function for row in rows], np.int32), np.stack([row.numbers_6 for row in rows]))


def rows(table: Operation, number: jax.Array) -> Operation:
    """The operations of a table with these numbers."""
    return jax.tree.map(lambda column: jnp.asarray(column)[number], table)


def _bits(name: str, magnitude: float) -> tuple[int, int]:
    match name:
        case "Posterize":
            return 0x100 - 2 ** (8 - int(magnitude)), 256
        case "Solarize":
            return 0xFF, math.ceil(magnitude)
    return 0xFF, 0


def _matrix(name: str, magnitude: float, height: int, width: int) -> list[int]:
    """The matrix of `geometry.affine`, computed as by torchvision's `affine`, Pillow's `rotate` and its transform."""
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0
    match name:
        case "ShearX":
            b = magnitude
        case "ShearY":
            d = magnitude
        case "TranslateX":
            c = -float(int(magnitude))
        case "TranslateY":
            f = -float(int(magnitude))
        case "Rotate":
            angle = -math.radians(magnitude % 360)
            a, b = round(math.cos(angle), 15), round(math.sin(angle), 15)
            d, e = -b, a
            c, f = (1 - a) * width / 2 - b * height / 2, (1 - e) * height / 2 - d * width / 2
    # The centre of a pixel is half a pixel from its corner.
    centred = (a, b, c + (a + b) / 2, d, e, f + (d + e) / 2)
    return [math.floor(entry * 2**geometry.FRACTION_BITS + 0.5) for entry in centred]
