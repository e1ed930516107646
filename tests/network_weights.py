"""Images, and weights by the names and shapes of their tensors: the same in PyTorch and here, so none are stored."""

import zlib
from collections.abc import Iterable, Mapping

import numpy as np


def drawn(shapes: Mapping[str, Iterable[int]]) -> dict[str, np.ndarray]:
    """Float32 tensors of a state dict. Activations keep their size, and no tensor is all zeros or all ones."""
    return {name: _tensor(name, tuple(shape)) for name, shape in shapes.items()}


def directions(shapes: Mapping[str, Iterable[int]]) -> dict[str, np.ndarray]:
    """Float32 tensors of the names and shapes of a state dict, to multiply gradients with."""
    return {name: _tensor(f"direction of {name}", tuple(shape)) for name, shape in shapes.items()}


def images(size: int) -> np.ndarray:
    """Two normalised images (float32 2 x size x size x 3)."""
    return np.random.default_rng(size).standard_normal((2, size, size, 3)).astype(np.float32)


def _tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        value = np.exp(0.3 * normal)
    elif len(shape) > 1:
        value = normal / np.sqrt(np.prod(shape[1:]))
    elif name.endswith(("bias", "running_mean")):
        value = 0.1 * normal
    else:
        value = 1 + 0.1 * normal
    return value.astype(np.float32)
