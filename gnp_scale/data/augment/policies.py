"""AutoAugment (arXiv 1805.09501) and RandAugment (arXiv 1909.13719), with the operations and ranges of torchvision.

Geometric operations take the nearest pixel and fill with black, as torchvision's classes by default.

H rows, W columns, C channels.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp

from gnp_scale.config.data import RANDAUGMENT_LEVELS
from gnp_scale.data.augment.operations import SIGNED, Operation, apply_all, operation, rows, stacked

RANDAUGMENT = (
    *("Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast"),
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize"),
)
"""The operations of RandAugment, in torchvision's order."""
# The sub-policies: two operations each, with probability and level (0 to 9). Table 9 and table 7 of the paper.
_IMAGENET = """
Posterize 0.4 8 Rotate 0.6 9, Solarize 0.6 5 AutoContrast 0.6 0, Equalize 0.8 0 Equalize 0.6 0,
Posterize 0.6 7 Posterize 0.6 6, Equalize 0.4 0 Solarize 0.2 4, Equalize 0.4 0 Rotate 0.8 8,
Solarize 0.6 3 Equalize 0.6 0, Posterize 0.8 5 Equalize 1.0 0, Rotate 0.2 3 Solarize 0.6 8,
Equalize 0.6 0 Posterize 0.4 6, Rotate 0.8 8 Color 0.4 0, Rotate 0.4 9 Equalize 0.6 0,
Equalize 0.0 0 Equalize 0.8 0, Invert 0.6 0 Equalize 1.0 0, Color 0.6 4 Contrast 1.0 8,
Rotate 0.8 8 Color 1.0 2, Color 0.8 8 Solarize 0.8 7, Sharpness 0.4 7 Invert 0.6 0,
ShearX 0.6 5 Equalize 1.0 0, Color 0.4 0 Equalize 0.6 0, Equalize 0.4 0 Solarize 0.2 4,
Solarize 0.6 5 AutoContrast 0.6 0, Invert 0.6 0 Equalize 1.0 0, Color 0.6 4 Contrast 1.0 8,
Equalize 0.8 0 Equalize 0.6 0
"""
_CIFAR10 = """
Invert 0.1 0 Contrast 0.2 6, Rotate 0.7 2 TranslateX 0.3 9, Sharpness 0.8 1 Sharpness 0.9 3,
ShearY 0.5 8 TranslateY 0.7 9, AutoContrast 0.5 0 Equalize 0.9 0, ShearY 0.2 7 Posterize 0.3 7,
Color 0.4 3 Brightness 0.6 7, Sharpness 0.3 9 Brightness 0.7 9, Equalize 0.6 0 Equalize 0.5 0,
Contrast 0.6 7 Sharpness 0.6 5, Color 0.7 7 TranslateX 0.5 8, Equalize 0.3 0 AutoContrast 0.4 0,
TranslateY 0.4 3 Sharpness 0.2 6, Brightness 0.9 6 Color 0.2 8, Solarize 0.5 2 Invert 0.0 0,
Equalize 0.2 0 AutoContrast 0.6 0, Equalize 0.2 0 Equalize 0.6 0, Color 0.9 9 Equalize 0.6 0,
AutoContrast 0.8 0 Solarize 0.2 8, Brightness 0.1 3 Color 0.7 0, Solarize 0.4 5 AutoContrast 0.9 0,
TranslateY 0.9 9 TranslateY 0.7 9, AutoContrast 0.9 0 Solarize 0.8 3, Equalize 0.8 0 Invert 0.1 0,
TranslateY 0.7 9 AutoContrast 0.9 0
"""
_NUM_LEVELS = 10


def _parsed(text: str) -> tuple[tuple[tuple[str, float, int], ...], ...]:
    """For each sub-policy, name, probability and level of its two operations."""
    words = [entry.split() for entry in text.split(",")]
    return tuple(tuple((w[i], float(w[i + 1]), int(w[i + 2])) for i in (0, 3)) for w in words)


AUTOAUGMENT = {"autoaugment_imagenet": _parsed(_IMAGENET), "autoaugment_cifar10": _parsed(_CIFAR10)}


def magnitude(name: str, level: int, num_levels: int, height: int, width: int) -> float:
    """The magnitude of an operation at `level` of `num_levels`: torchvision's `_augmentation_space`."""
    share = level / (num_levels - 1)
    match name:
        case "ShearX" | "ShearY":
            return 0.3 * share
        case "TranslateX":
            return 150 / 331 * width * share
        case "TranslateY":
            return 150 / 331 * height * share
        case "Rotate":
            return 30 * share
        case "Brightness" | "Color" | "Contrast" | "Sharpness":
            return 0.9 * share
        case "Posterize":
            return 8 - round(4 * share)
        case "Solarize":
            # A whole number must not be rounded up from just above it.
            return round(255 * (1 - share), 6)
    return 0.0


def randaugment(key: jax.Array, image_HxWxC: jax.Array, num_ops: int, level: int) -> jax.Array:
    """`num_ops` random operations at `level`, each with a random sign, one after the other."""
    table = randaugment_table(level, *image_HxWxC.shape[:2])
    # Numbers of operations and signs together.
    number_N = jax.random.randint(key, (num_ops,), 0, 2 * len(RANDAUGMENT))
    return apply_all(rows(table, number_N), image_HxWxC)


def autoaugment(key: jax.Array, image_HxWxC: jax.Array, policy: str) -> jax.Array:
    """The two operations of a random sub-policy, each with its probability and a random sign."""
    choice_key, probability_key, sign_key = jax.random.split(key, 3)
    choice = jax.random.randint(choice_key, (), 0, len(AUTOAUGMENT[policy]))
    probability_2 = jnp.array([[p for _, p, _ in pair] for pair in AUTOAUGMENT[policy]], jnp.float32)[choice]
    is_applied_2 = jax.random.bernoulli(probability_key, probability_2)
    return sub_policy(image_HxWxC, policy, choice, is_applied_2, jax.random.randint(sign_key, (2,), 0, 2))


def sub_policy(
    image_HxWxC: jax.Array, policy: str, choice: jax.Array, is_applied_2: jax.Array, sign_2: jax.Array
) -> jax.Array:
    """The operations of sub-policy `choice` that are applied; a magnitude is negative where its sign is 0."""
    table = _autoaugment_table(policy, *image_HxWxC.shape[:2])
    number_2 = jnp.where(is_applied_2, 1 + 4 * choice + jnp.array([0, 2]) + sign_2, 0)
    return apply_all(rows(table, number_2), image_HxWxC)


@lru_cache
def randaugment_table(level: int, height: int, width: int) -> Operation:
    """Two rows for each operation: with its magnitude, and with that negated."""
    rows = [
        operation(name, sign * magnitude(name, level, RANDAUGMENT_LEVELS, height, width), height, width)
        for name in RANDAUGMENT
        for sign in ((1, -1) if name in SIGNED else (1, 1))
    ]
    return stacked(rows)


@lru_cache
def _autoaugment_table(policy: str, height: int, width: int) -> Operation:
    """First the row of no operation; then for each operation of each sub-policy one with each sign."""
    rows = [
        operation(name, sign * magnitude(name, level, _NUM_LEVELS, height, width), height, width)
        for pair in AUTOAUGMENT[policy]
        for name, _, level in pair
        for sign in ((-1, 1) if name in SIGNED else (1, 1))
    ]
    return stacked([operation("Identity", 0, height, width), *rows])
