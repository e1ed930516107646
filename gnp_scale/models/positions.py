"""Fixed positions of the patches of a vision transformer: added sines and cosines, or rotated queries and keys.

Shapes: B examples, N tokens, D width, H heads, K channels of a head, F angles of a token.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import check

_LONGEST = 10_000.0
"""Ratio of the longest to the shortest wavelength of `sincos2d`."""
_BASE = 100.0
"""Base of the periods of `rotate`."""


@dataclass(frozen=True)
class Grid:
    """Tokens of an image: first those without a place, then the patches, row by row."""

    num_rows: int
    num_columns: int
    num_others: int = 0


def check_sincos2d(width: int) -> None:
    """Raises ConfigError unless `width` channels divide into sines and cosines of two or more frequencies."""
    fits = width % 4 == 0 and width >= 8
    check(fits, f"model.position sincos2d needs a width of 8, 12, 16, ... and this is {width}: change model.width")


def sincos2d(grid: Grid, width: int) -> np.ndarray:
    """Sines and cosines of the columns, then of the rows, of the patches (float32 N x D), as in big_vision.

    Frequencies fall geometrically from 1 to 1 / 10,000 radians per patch. MoCo v3 (arXiv 2104.02057) uses such, too.
    """
    frequency_F = _LONGEST ** -np.linspace(0, 1, width // 4)
    row_N, column_N = (place.ravel() for place in np.mgrid[: grid.num_rows, : grid.num_columns])
    column_NxF, row_NxF = column_N[:, None] * frequency_F, row_N[:, None] * frequency_F
    parts = np.sin(column_NxF), np.cos(column_NxF), np.sin(row_NxF), np.cos(row_NxF)
    return np.concatenate(parts, axis=1).astype(np.float32)


def check_rope(num_channels: int) -> None:
    """Raises ConfigError unless a head of `num_channels` divides into pairs for rows and for columns."""
    fits = num_channels % 4 == 0
    message = f"model.position rope needs heads whose channels are a multiple of 4, and these have {num_channels}"
    check(fits, f"{message}: change model.width or model.num_heads")


def rotate(x_BxNxHxK: jax.Array, grid: Grid) -> jax.Array:
    """Rotates each pair of channels (k, k + K/2) by the angle of `angles`; tokens without a place stay as they are.

    Computed in float32; the result has the type of `x_BxNxHxK`. Only the difference of two places enters the product
    of a query and a key (arXiv 2104.09864, section 3.2).
    """
    angle_NxF = angles(grid, x_BxNxHxK.shape[-1])
    cos, sin = (jnp.asarray(fn(angle_NxF), jnp.float32)[None, :, None] for fn in (np.cos, np.sin))
    first, second = jnp.split(x_BxNxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BxNxHxK.dtype)


@functools.cache
def angles(grid: Grid, num_channels: int) -> np.ndarray:
    """Angles of the tokens (float64 N x K/2), as in DINOv3 (arXiv 2508.10104) and timm's port of it.

    The centres of the patches are in [-1, 1] along rows and columns, whatever the image. Angle i of K/4 of each is
    2 pi * centre / 100^(4 i / K); those of the rows come first. The random shifts of its training are left out.
    """
    period_F = _BASE ** (np.arange(num_channels // 4) * 4 / num_channels)
    centres = ((np.arange(number) + 0.5) / number * 2 - 1 for number in (grid.num_rows, grid.num_columns))
    places_Nx2 = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(-1, 2)
    angle_NxF = (2 * np.pi * places_Nx2[:, :, None] / period_F).reshape(len(places_Nx2), -1)
    return np.pad(angle_NxF, ((grid.num_others, 0), (0, 0)))
