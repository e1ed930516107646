"""Weights of the same network in PyTorch: other names, and kernels with the output first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

type TorchName = Callable[[str], str]
"""From the path of a parameter or statistic, such as "blocks/00/mlp/in_proj/kernel", to its name in a state dict."""

_LEAVES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "variance": "running_var"}


def leaf_name(leaf: str) -> str:
    """The name of a parameter or statistic within its module."""
    return _LEAVES.get(leaf, leaf)


def name_by_table(modules: Sequence[str], leaf: str, table: Mapping[str, str]) -> str:
    """The name of `leaf` in nested `modules`, from a table of the names of leaves, or of the modules that have them.

    >>> name_by_table(["mlp", "in_proj"], "kernel", {"mlp/in_proj": "mlp.fc1"})
    'mlp.fc1.weight'
    """
    module = "/".join(modules)
    if (path := f"{module}/{leaf}") in table:
        return table[path]
    return ".".join((table[module], leaf_name(leaf)))


def from_torch(tensors: Mapping[str, np.ndarray], abstract: Any, torch_name: TorchName) -> Any:
    """The arrays of a tree of shapes from a state dict: float32, as NumPy arrays.

    A kernel is transposed: (out, in, height, width) becomes (height, width, in, out), and (out, in) becomes (in, out).
    Then each tensor gets the shape that is due: PyTorch keeps the heads of an attention in one axis.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another number of elements.
    """

    def array(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        tensor = np.asarray(tensors[torch_name(name)], np.float32)
        if name.endswith("kernel"):
            tensor = tensor.transpose((2, 3, 1, 0) if tensor.ndim == 4 else (1, 0))
        return tensor.reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(array, abstract)
