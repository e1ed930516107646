"""Positions and patches of another size, as in timm 1.0.31.

Shapes: N positions, D channels, H height and W width of a grid or patch, P and Q the new and the old size of a
dimension.
"""

import math
from functools import cache

import numpy as np

type Size = tuple[int, int]


@cache
def _cubic(new: int, old: int) -> np.ndarray:
    """The weights (P x Q) of a bicubic, antialiased resize along one dimension: those of Pillow.

    Each new pixel is a weighted mean of the old ones around its centre, with Keys' kernel of a = -1/2 (equation 4 of
    https://doi.org/10.1109/TASSP.1981.1163711), which is as much wider as the image gets smaller.
    """
    scale = old / new
    centre_P = (np.arange(new) + 0.5) * scale - 0.5
    x_PxQ = np.abs(np.arange(old) - centre_P[:, None]) / max(scale, 1.0)
    near, far = 1.5 * x_PxQ**3 - 2.5 * x_PxQ**2 + 1, -0.5 * x_PxQ**3 + 2.5 * x_PxQ**2 - 4 * x_PxQ + 2
    weight_PxQ = np.where(x_PxQ < 1, near, np.where(x_PxQ < 2, far, 0.0))
    return weight_PxQ / weight_PxQ.sum(axis=1, keepdims=True)


def square(num_positions: int) -> int | None:
    """The side of a square grid; None if there is none."""
    side = math.isqrt(max(num_positions, 0))
    return side if side > 0 and side**2 == num_positions else None


def positions(position_NxD: np.ndarray, grid: Size, num_before: int) -> np.ndarray | None:
    """Embeddings of `num_before` tokens, and of the positions of `grid` (`resample_abs_pos_embed`).

    The old grid is square. Those before it stay as they are. If the file has none for the class token, it adds none to
    it, so they are zero; those of a class token that the network does not have are left out. None if there is no grid.
    """
    candidates = (num_before, 0) if num_before else (0, 1)
    num_old = next((number for number in candidates if square(len(position_NxD) - number)), None)
    if num_old is None:
        return None
    width = position_NxD.shape[1]
    before = position_NxD[:num_old] if num_old == num_before else np.zeros((num_before, width), position_NxD.dtype)
    side = square(len(position_NxD) - num_old)
    assert side is not None
    grid_HxWxD = position_NxD[num_old:].reshape(side, side, width)
    if (side, side) != grid:
        rows, columns = _cubic(grid[0], side), _cubic(grid[1], side)
        grid_HxWxD = np.einsum("hi,wj,ijd->hwd", rows, columns, grid_HxWxD, optimize=True)
    return np.concatenate([before, grid_HxWxD.reshape(-1, width)]).astype(np.float32)


def patches(kernel_HxWxCxD: np.ndarray, size: Size) -> np.ndarray:
    """The kernel for patches of another size (`resample_patch_embed`, arXiv 2212.08013, section 3.3).

    A patch x of the old size has the same embedding w . x after a resize Bx, where B is the matrix of the resize and
    the new kernel is the pseudo-inverse of B^T times w. It is exact if patches get larger.
    """
    height, width = kernel_HxWxCxD.shape[:2]
    resize = np.kron(_cubic(size[0], height), _cubic(size[1], width))
    flat = np.linalg.pinv(resize.T) @ kernel_HxWxCxD.reshape(height * width, -1)
    return flat.reshape(*size, *kernel_HxWxCxD.shape[2:]).astype(np.float32)


def relative_positions(bias_HxWxD: np.ndarray, size: Size) -> np.ndarray:
    """The biases of `size` differences of two positions (`resize_rel_pos_bias_table`): linear between old ones.

    The old differences lie at geometrically growing distances around 0, so that the small ones, which vary most, keep
    their places, and the largest old one comes to the largest new one.
    """
    for axis in (0, 1):
        old, new = _spread(bias_HxWxD.shape[axis], size[axis]), np.arange(size[axis]) - size[axis] // 2
        bias_HxWxD = np.apply_along_axis(lambda values, old=old, new=new: np.interp(new, old, values), axis, bias_HxWxD)
    return bias_HxWxD.astype(np.float32)


def _spread(num_old: int, num_new: int) -> np.ndarray:
    """Where the old differences lie among the new ones: 0, +-1, +-(1 + q), +-(1 + q + q^2), and so on."""
    ratio, low, high = 1.5, 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        is_beyond = (1 - ratio ** (num_old // 2)) / (1 - ratio) > num_new // 2
        low, high = (low, ratio) if is_beyond else (ratio, high)
    distance = np.cumsum(ratio ** np.arange(num_old // 2))
    return np.concatenate([-distance[::-1], [0.0], distance])
