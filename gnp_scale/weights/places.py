"""Where the files of other libraries keep the parameters: names of tensors, and the order of their axes.

Shapes: D width, H heads, K channels of a head, N positions.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gnp_scale.config import ConfigError, ModelConfig, check
from gnp_scale.models import cait, cifar_resnet, convnext, mixer, resnet, swin, vgg, vit
from gnp_scale.models.torch_weights import TorchName, in_our_order, in_torch_order, own_name

type Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class Place:
    """Where a file keeps one array."""

    names: tuple[str, ...]
    """Of its tensors. A file for JAX keeps queries, keys and values apart."""
    to_file: Callable[[np.ndarray], Arrays]
    """The tensors of an array."""
    from_file: Callable[[Arrays], np.ndarray]
    """The array of the tensors, in the order of our axes; adjacent axes may be merged, and there may be a first axis
    of length 1."""


type Places = Callable[[str], Place]
"""From the path of an array, such as "blocks/00/mlp/in_proj/kernel"."""

_PUBLISHED: tuple[tuple[dict, TorchName], ...] = (
    ({name: size for name, size in vit.SIZES.items() if not size.parallel}, vit.torch_name),
    (cait.SIZES, cait.torch_name),
    (swin.LAYOUTS, swin.torch_name),
    (resnet.LAYOUTS, resnet.torch_name),
    (cifar_resnet.LAYOUTS, cifar_resnet.torch_name),
    (convnext.SIZES, convnext.torch_name),
    (mixer.SIZES, mixer.torch_name),
    *(({f"{name}{end}": None}, partial(vgg.torch_name, f"{name}{end}")) for name in vgg.LAYOUTS for end in ("", "_bn")),
)
_CONVOLUTIONS_OF_A_PIXEL = ("dense_2/kernel",)
"""Dense layers that are convolutions with a kernel of 1x1 in timm's VGG."""


def torch_places(config: ModelConfig) -> Places:
    """Those in a PyTorch state dict: of timm, for the CIFAR ResNets of akamaster/pytorch_resnet_cifar10, and for
    networks that neither has, by our own names. Vision transformers with what only timm's Eva has, have its names."""
    torch_name = next((names for networks, names in _PUBLISHED if config.name in networks), own_name)
    if is_eva(config) and torch_name is vit.torch_name:
        torch_name = _eva_name

    def place(path: str) -> Place:
        return Place((torch_name(path),), partial(_to_torch, path), lambda tensors: in_our_order(path, tensors[0]))

    return _with_a_line_for_the_unnamed(place, config, "PyTorch")


def is_eva(config: ModelConfig) -> bool:
    """Whether timm has this vision transformer as Eva, DINOv3 among them, not as VisionTransformer."""
    return config.name in vit.SIZES and (config.position == "rope" or config.mlp == "swiglu")


def _eva_name(path: str) -> str:
    return re.sub(r"\.ls(\d)\.gamma$", r".gamma_\1", vit.torch_name(path))


def has_rows_for_registers(config: ModelConfig) -> bool:
    """Whether timm has positions of registers too: it has them for all tokens that are not patches, or for none."""
    size = vit.SIZES.get(config.name)
    has_token = config.pool == "token" and config.position == "learned" and size is not None and not size.deit
    return has_token and config.num_registers > 0


def _to_torch(path: str, array: np.ndarray) -> Arrays:
    tensor = in_torch_order(path, array)
    return [tensor[..., None, None] if path in _CONVOLUTIONS_OF_A_PIXEL else tensor]


def jax_places(config: ModelConfig) -> Places:
    """Those in an .npz of big_vision or vision_transformer, with the names that `canonical` gives.

    Raises: ConfigError: neither has the network.
    """
    if config.name in mixer.SIZES:
        return _with_a_line_for_the_unnamed(_mixer_place, config, "big_vision")
    size = vit.SIZES.get(config.name)
    check(
        size is not None and not size.deit and not size.parallel,
        f"model.name is {config.name}: .npz files are read and written for ViT and MLP-Mixer only; use .safetensors",
    )
    check(config.position != "rope", "model.position is rope, which big_vision does not have: use .safetensors")
    return _with_a_line_for_the_unnamed(_vit_place, config, "big_vision")


def _with_a_line_for_the_unnamed(place: Places, config: ModelConfig, library: str) -> Places:
    def named(path: str) -> Place:
        try:
            return place(path)
        except KeyError:
            raise ConfigError(f"{library} has no name for {path} of {config.name} as it is configured") from None

    return named


_ATTENTION = "MultiHeadDotProductAttention_0"
_VIT_NAMES = {
    "embed": "embedding",
    "norm": "Transformer/encoder_norm",
    "rep": "pre_logits",
    "head": "head",
    "attention_pool/query": f"MAPHead_0/{_ATTENTION}/query",
    "attention_pool/out_proj": f"MAPHead_0/{_ATTENTION}/out",
    "attention_pool/norm": "MAPHead_0/LayerNorm_0",
    "attention_pool/mlp/in_proj": "MAPHead_0/MlpBlock_0/Dense_0",
    "attention_pool/mlp/out_proj": "MAPHead_0/MlpBlock_0/Dense_1",
}
_VIT_VECTORS = {"token": "cls", "position": "pos_embedding", "attention_pool/latent": "MAPHead_0/probe"}
_BLOCK_NAMES = {
    "norm_attention": "LayerNorm_0",
    "attention/out_proj": f"{_ATTENTION}/out",
    "norm_mlp": "LayerNorm_1",
    "mlp/in_proj": "MlpBlock_0/Dense_0",
    "mlp/out_proj": "MlpBlock_0/Dense_1",
}
_MIXER_NAMES = {"embed": "stem", "norm": "pre_head_layer_norm", "head": "head"}
_MIXER_BLOCK_NAMES = {
    "norm_tokens": "LayerNorm_0",
    "norm_channels": "LayerNorm_1",
    **{
        f"mlp_{what}/{ours}": f"{theirs}_mixing/{dense}"
        for what, theirs in (("tokens", "token"), ("channels", "channel"))
        for ours, dense in (("in_proj", "Dense_0"), ("out_proj", "Dense_1"))
    },
}


def _vit_place(path: str) -> Place:
    *modules, leaf = path.split("/")
    match modules:
        case [] | ["attention_pool"]:
            return replace(_as_it_is(_VIT_VECTORS[path]), to_file=lambda array: [array[None]])
        case ["blocks", number, "attention", "in_proj"]:
            attention = f"Transformer/encoderblock_{int(number)}/{_ATTENTION}"
            return _apart([f"{attention}/{name}/{leaf}" for name in ("query", "key", "value")])
        case ["attention_pool", "key_value"]:
            return _apart([f"MAPHead_0/{_ATTENTION}/{name}/{leaf}" for name in ("key", "value")])
        case ["blocks", number, *inner]:
            return _as_it_is(f"Transformer/encoderblock_{int(number)}/{_BLOCK_NAMES['/'.join(inner)]}/{leaf}")
        case _:
            return _as_it_is(f"{_VIT_NAMES['/'.join(modules)]}/{leaf}")


def _apart(names: Sequence[str]) -> Place:
    """Each of `names` has its part: our kernel is D x parts x H x K, and our bias parts x H x K."""
    axis = 1 if names[0].endswith("kernel") else 0
    return Place(tuple(names), lambda array: np.unstack(array, axis=axis), partial(np.stack, axis=axis))


def _mixer_place(path: str) -> Place:
    match path.split("/"):
        case ["blocks", number, *inner, leaf]:
            return _as_it_is(f"MixerBlock_{int(number)}/{_MIXER_BLOCK_NAMES['/'.join(inner)]}/{leaf}")
        case [module, leaf]:
            return _as_it_is(f"{_MIXER_NAMES[module]}/{leaf}")
    raise KeyError(path)


def _as_it_is(name: str) -> Place:
    return Place((name,), lambda array: [array], lambda tensors: tensors[0])


def blocks_of(path: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[list[str], tuple[int, ...]]:
    """The paths of the arrays that `path` has without `scan_layers`, one for each block, and the shape of each."""
    stack, _, rest = path.partition("/")
    if not config.scan_layers or stack != "blocks":
        return [path], shape
    return [f"{stack}/{number:02d}/{rest}" for number in range(shape[0])], shape[1:]
