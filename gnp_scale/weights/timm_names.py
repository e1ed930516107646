"""The networks of timm that have the parameters of ours."""

from dataclasses import fields
from typing import Any

from gnp_scale.config import ModelConfig
from gnp_scale.models import cait, convnext, mixer, resnet, swin, vgg, vit
from gnp_scale.models.transformer import ViTConfig
from gnp_scale.models.windows import HEAD_CHANNELS
from gnp_scale.weights.places import has_rows_for_registers, is_eva

type Architecture = tuple[str, dict[str, Any]]
"""The name and the arguments of `timm.create_model`."""

_WORDS = {
    "t": "tiny",
    "ti": "tiny",
    "s": "small",
    "m": "medium",
    "b": "base",
    "l": "large",
    "h": "huge",
    "xl": "xlarge",
}
_CAIT = (
    *("cait_xxs24_224", "cait_xxs36_224", "cait_xs24_384", "cait_s24_224"),
    *("cait_s36_384", "cait_m36_384", "cait_m48_448"),
)
_MIXER_PATCHES = (16, 32)
_DESCRIBED = {
    *("patch_size", "depth", "width", "num_heads", "scan_layers"),
    *("num_registers", "position", "mlp"),
}
"""Options that change names or shapes, or only their order."""
_WITHOUT_EFFECT = {
    *("name", "dropout", "drop_path", "shake_drop", "shake_gradient", "dtype", "attention", "remat"),
    *("sequence_parallel", "init_from", "init_allow", "num_bn_groups", "pool", "stem"),
}
"""Options that do not change a trained network, and those that are looked at below."""


def architecture(config: ModelConfig, image_shape: tuple[int, int, int]) -> Architecture | None:
    """The network of timm 1.0.31 with the parameters of `config`, for images of this shape; None if it has none.

    The activation of a Mixer is not an argument that has a name: give `act_layer` as
    `functools.partial(torch.nn.GELU, approximate="tanh")`. Nor is the epsilon of Eva's norms: give `norm_layer` as
    `functools.partial(timm.layers.LayerNorm, eps=1e-6)`.
    """
    known = _DESCRIBED | _WITHOUT_EFFECT
    if any(getattr(config, field.name) != field.default for field in fields(config) if field.name not in known):
        return None
    name, word = config.name, _WORDS.get(config.name.rpartition("_")[2], "")
    if name in resnet.LAYOUTS:
        return (name, {}) if config.stem == "imagenet" else None
    if name.removesuffix("_bn") in vgg.LAYOUTS:
        return name, {}
    if name in convnext.SIZES:
        size = convnext.SIZES[name]
        return f"convnext_{word}", {"depths": list(size.depths), "dims": list(size.widths)}
    if name in mixer.SIZES:
        patch = config.patch_size
        return (f"{name}{patch}_224", _image(image_shape)) if patch in _MIXER_PATCHES else None
    if name in swin.LAYOUTS:
        return f"swin_{word}_patch4_window7_224", _swin(name, image_shape)
    return _transformer(config, image_shape, word)


def _image(image_shape: tuple[int, int, int]) -> dict[str, Any]:
    return {"img_size": list(image_shape[:2])}


def _swin(name: str, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    width, depths = swin.LAYOUTS[name]
    heads = [width * 2**stage // HEAD_CHANNELS for stage in range(len(depths))]
    window = [side // swin.REDUCTION for side in image_shape[:2]]
    return {
        **_image(image_shape),
        "embed_dim": width,
        "depths": list(depths),
        "num_heads": heads,
        "window_size": window,
    }


def _transformer(config: ModelConfig, image_shape: tuple[int, int, int], word: str) -> Architecture | None:
    if config.name in cait.SIZES:
        size = vit.size_of(config, cait.SIZES)
        name = next(n for n in _CAIT if n.startswith(config.name))
        return name, _dimensions(size, config, image_shape)
    size = vit.size_of(config) if config.name in vit.SIZES else None
    if size is None or size.parallel or config.position == "sincos2d":
        return None
    arguments = _dimensions(size, config, image_shape) | {"mlp_ratio": size.mlp / size.width}
    if is_eva(config):
        return _eva(config, size, arguments)
    if config.pool != "token":
        pool = "avg" if config.pool == "average" else "map"
        arguments |= {"global_pool": pool, "class_token": False, "fc_norm": False}
    if config.num_registers:
        arguments |= {"reg_tokens": config.num_registers, "no_embed_class": not has_rows_for_registers(config)}
    if size.deit:
        return f"deit3_{word}_patch{14 if word == 'huge' else 16}_224", arguments
    is_siglip = config.name == "vit_so400m" and config.pool == "attention"
    name = "vit_so400m_patch14_siglip_224" if is_siglip else "vit_base_patch16_224"
    return name, arguments | {"act_layer": "gelu_tanh"}


def _eva(config: ModelConfig, size: ViTConfig, arguments: dict[str, Any]) -> Architecture | None:
    """The Eva with these arguments: its GELU is exact, and its attention pool reads registers as well."""
    if config.pool == "attention" or not (size.swiglu or size.deit):
        return None
    is_learned, has_token = config.position == "learned", config.pool == "token"
    arguments |= {
        "attn_type": "rope",
        "swiglu_mlp": size.swiglu,
        "swiglu_align_to": 1,
        "num_reg_tokens": config.num_registers,
        "global_pool": "token" if has_token else "avg",
        "class_token": has_token,
        "use_fc_norm": False,
        "use_abs_pos_emb": is_learned,
        "use_rot_pos_emb": not is_learned,
        "no_embed_class": size.deit or not has_token,
    }
    if size.layer_scale is not None:
        return "vit_small_plus_patch16_dinov3_qkvb", arguments | {"init_values": size.layer_scale}
    # `timm.create_model` ignores an argument that is None, so another name has to have no LayerScale.
    return "eva02_tiny_patch14_224", arguments | {
        "rope_type": "dinov3",
        "rope_temperature": 100.0,
        "rope_rotate_half": True,
    }


def _dimensions(size: ViTConfig, config: ModelConfig, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    return {
        **_image(image_shape),
        "patch_size": config.patch_size,
        "embed_dim": size.width,
        "depth": size.depth,
        "num_heads": size.num_heads,
    }
