"""Older names of tensors, and those of other publishers of the same networks, as the names that `places.py` has."""

import re
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from gnp_scale.weights.resample import square

type _Read = Callable[[], np.ndarray]

_WRAPPERS = re.compile(r"^(module\.|model\.|_orig_mod\.)+")
"""Of DistributedDataParallel, of trainers, and of torch.compile."""
_NOT_LEARNED = re.compile(r"\.(num_batches_tracked|relative_position_index|attn_mask)$|^attn_mask$")
_OLD_SWIN = "layers.0.downsample.reduction.weight"
"""The authors' own files end stages 0 to 2 with a reduction; timm begins stages 1 to 3 with it."""
_FACEBOOK_CONVNEXT = "downsample_layers.0.0.weight"
_CONVNEXT_NAMES = (
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.pwconv", ".mlp.fc"),
    (r"^norm\.", "head.norm."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
)
_TORCHVISION_VGG = "classifier.6.weight"
_VGG_NAMES = (
    (r"^classifier\.0\.", "pre_logits.fc1."),
    (r"^classifier\.3\.", "pre_logits.fc2."),
    (r"^classifier\.6\.", "head.fc."),
)
_VGG_SHAPES = {"pre_logits.fc1.weight": (7, 7), "pre_logits.fc2.weight": (1, 1)}
"""Height and width of kernels that are one axis in torchvision."""


def torch_names(tensors: Mapping[str, _Read], num_positions: int | None = None) -> dict[str, _Read]:
    """The learned tensors of a state dict, by the names of timm.

    Known are DistributedDataParallel's and other wrappers, and the files of the authors of Swin, ConvNeXt and DINOv2
    with registers, and of torchvision's VGG. `num_positions` are those that the network has as they are in the file.
    """
    named = {_WRAPPERS.sub("", name): read for name, read in tensors.items() if not _NOT_LEARNED.search(name)}
    if "register_tokens" in named:
        named = _of_dinov2(named)
    if "reg_token" in named and "pos_embed" in named:
        named = _with_places_in_registers(named, num_positions)
    if _OLD_SWIN in named:
        return {_new_swin(name): read for name, read in named.items()}
    if _FACEBOOK_CONVNEXT in named:
        return {_renamed(name, _CONVNEXT_NAMES): read for name, read in named.items()}
    if _TORCHVISION_VGG in named:
        renamed = {_renamed(name, _VGG_NAMES): read for name, read in named.items()}
        return renamed | {
            name: partial(_with_window, renamed[name], size) for name, size in _VGG_SHAPES.items() if name in renamed
        }
    return named


def _of_dinov2(named: dict[str, _Read]) -> dict[str, _Read]:
    """With the position of the class token in the token, as in timm, and without the token of masked patches."""
    token, position = named["cls_token"], named["pos_embed"]
    return {
        **{name: read for name, read in named.items() if name not in ("register_tokens", "mask_token")},
        "reg_token": named["register_tokens"],
        "cls_token": lambda: token() + position()[:, :1],
        "pos_embed": lambda: position()[:, 1:],
    }


def _with_places_in_registers(named: dict[str, _Read], num_positions: int | None) -> dict[str, _Read]:
    """With the positions of registers, which some networks of timm have, in the registers themselves.

    Positions are of the class token if there is one, of registers, and of a square grid; or of the grid alone, or of
    the class token and the grid.
    """
    registers, position = named["reg_token"], named["pos_embed"]
    first = int("cls_token" in named)
    end = first + registers().shape[1]
    num_found = position().shape[1]
    if num_found == num_positions or square(num_found - end) is None:
        return named
    return named | {
        "reg_token": lambda: registers() + position()[:, first:end],
        "pos_embed": lambda: np.delete(position(), slice(first, end), axis=1),
    }


def _renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in table:
        name = re.sub(pattern, new, name)
    return name


def _new_swin(name: str) -> str:
    name = re.sub(r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) + 1}.downsample", name)
    return re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name)


def _with_window(read: _Read, size: tuple[int, int]) -> np.ndarray:
    tensor = read()
    return tensor.reshape(len(tensor), -1, *size) if tensor.ndim == 2 else tensor


_JAX_NAMES = (
    # Before Flax Linen, modules of all types were counted together.
    (r"/LayerNorm_2/", "/LayerNorm_1/"),
    (r"/MultiHeadDotProductAttention_1/", "/MultiHeadDotProductAttention_0/"),
    (r"/MlpBlock_3/", "/MlpBlock_0/"),
    # Positions were a module of their own, then part of the encoder.
    (r"^Transformer/(posembed_input/)?pos_embedding$", "pos_embedding"),
)


def canonical_jax_name(name: str) -> str:
    """The name in today's big_vision of a tensor of big_vision or vision_transformer."""
    return _renamed(name, _JAX_NAMES)


def released_jax_name(name: str) -> str:
    """The name that the files of vision_transformer have, whose class token has a position."""
    for ours, theirs in (("LayerNorm_1", "LayerNorm_2"), ("MlpBlock_0", "MlpBlock_3")):
        name = name.replace(f"/{ours}/", f"/{theirs}/")
    name = name.replace("/MultiHeadDotProductAttention_0/", "/MultiHeadDotProductAttention_1/")
    return "Transformer/posembed_input/pos_embedding" if name == "pos_embedding" else name
