"""The sizes of vision transformers, and which options fit them."""

from collections.abc import Mapping
from dataclasses import replace

from gnp_scale.config import ModelConfig, check
from gnp_scale.mesh import TENSOR, current_axis_size
from gnp_scale.models.family import check_patches
from gnp_scale.models.positions import check_rope, check_sincos2d
from gnp_scale.models.transformer import ViTConfig

SIZES = {
    "vit_mu": ViTConfig(32, 1, 128, 2),  # For tests, as in big_vision.
    # Table 2 of arXiv 2106.04560, with M as in big_vision and H of table 1 of arXiv 2010.11929.
    "vit_ti": ViTConfig(192, 12, 768, 3),
    "vit_s": ViTConfig(384, 12, 1536, 6),
    "vit_m": ViTConfig(512, 12, 2048, 8),
    "vit_b": ViTConfig(768, 12, 3072, 12),
    "vit_l": ViTConfig(1024, 24, 4096, 16),
    "vit_so400m": ViTConfig(1152, 27, 4304, 16),  # SoViT-400m/14 of arXiv 2305.13035, as in big_vision.
    "vit_h": ViTConfig(1280, 32, 5120, 16),
    "vit_g": ViTConfig(1408, 40, 6144, 16),  # ViT-g: 1.0 billion parameters.
    "vit_gg": ViTConfig(1664, 48, 8192, 16),  # ViT-G: 1.8 billion.
    # The sizes of arXiv 2204.07118 as in its authors' code and timm. They were published with class tokens.
    "deit3_s": ViTConfig(384, 12, 1536, 6, deit=True, layer_scale=1e-6),
    "deit3_m": ViTConfig(512, 12, 2048, 8, deit=True, layer_scale=1e-6),
    "deit3_b": ViTConfig(768, 12, 3072, 12, deit=True, layer_scale=1e-6),
    "deit3_l": ViTConfig(1024, 24, 4096, 16, deit=True, layer_scale=1e-6),
    "deit3_h": ViTConfig(1280, 32, 5120, 16, deit=True, layer_scale=1e-6),
    # Table 1 of arXiv 2302.05442.
    "vit_22b": ViTConfig(6144, 48, 24576, 48, parallel=True),
}


def size_of(config: ModelConfig, sizes: Mapping[str, ViTConfig] = SIZES) -> ViTConfig:
    """The size that `config` names, with its overrides; with another width, the MLP is four times as wide."""
    size = sizes[config.name]
    if config.width is not None:
        size = replace(size, width=config.width, mlp=4 * config.width)
    depth, num_heads = config.depth or size.depth, config.num_heads or size.num_heads
    return replace(
        size,
        depth=depth,
        num_heads=num_heads,
        attention=config.attention,
        swiglu=config.mlp == "swiglu",
        # One shard of the tokens is all of them.
        sequence_parallel=config.sequence_parallel and current_axis_size(TENSOR) > 1,
    )


def check_shapes(
    config: ModelConfig, image_shape: tuple[int, int, int], sizes: Mapping[str, ViTConfig] = SIZES
) -> None:
    """Raises ConfigError unless patches divide the image, heads the width, and the kind of positions fits both."""
    check_patches(config, image_shape)
    size = size_of(config, sizes)
    check(
        size.width % size.num_heads == 0,
        f"{size.num_heads} attention heads do not divide a width of {size.width}: "
        "change model.num_heads or model.width",
    )
    if config.position == "sincos2d":
        check_sincos2d(size.width)
    if config.position == "rope":
        check_rope(size.width // size.num_heads)
