"""Weights of the same network in PyTorch: other names, and kernels with the output first."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from gnp_kernels.trees import path_name

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


def own_name(path: str) -> str:
    """The name in a network of PyTorch whose modules have our names.

    >>> own_name("blocks/0_00/conv_1/kernel")
    'blocks.0_00.conv_1.weight'
    """
    *modules, leaf = path.split("/")
    return ".".join((*modules, leaf_name(leaf)))


def in_our_order(path: str, tensor: np.ndarray) -> np.ndarray:
    """The tensor of `path` with the order of our axes.

    A kernel is transposed: (out, in, height, width) becomes (height, width, in, out), and (out, in) becomes (in, out).
    PyTorch keeps the heads of an attention in one axis: they are not taken apart.
    """
    if not path.endswith("kernel"):
        return tensor
    return tensor.transpose((2, 3, 1, 0) if tensor.ndim == 4 else (1, 0))


def in_torch_order(path: str, array: np.ndarray) -> np.ndarray:
    """The tensor of PyTorch that has the values of our `array`: the inverse of `in_our_order`, with heads in one axis.

    Tokens, queries of an attention pool and positions get the leading axis of length 1 that they have in timm.
    """
    *modules, leaf = path.split("/")
    if not modules or leaf == "latent":
        return array[None]
    if leaf != "kernel":
        return array.reshape(-1, array.shape[-1]) if leaf == "position" else array.ravel()
    if array.ndim == 4 and modules[-1] not in ("in_proj", "key_value"):
        return array.transpose(3, 2, 0, 1)
    num_in = array.ndim - 1 if modules[-1] == "out_proj" else 1
    return array.reshape(math.prod(array.shape[:num_in]), -1).T


def from_torch(tensors: Mapping[str, np.ndarray], abstract: Any, torch_name: TorchName) -> Any:
    """The arrays of a tree of shapes from a state dict: float32, as NumPy arrays, with the shapes of the tree.

    Raises:
        KeyError: a tensor is missing.
        ValueError: a tensor has another number of elements.
    """

    def array(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path_name(path)
        return in_our_order(name, np.asarray(tensors[torch_name(name)], np.float32)).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(array, abstract)
