"""Vision transformers (arXiv 2010.11929), DeiT-III (arXiv 2204.07118) and ViT-22B (arXiv 2302.05442).

Shapes: B examples, H height, W width and C channels of an image, N tokens, D width, K classes.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from gnp_kernels.dispatch import platform
from gnp_kernels.trees import upcast
from jax.nn.initializers import lecun_normal, normal, variance_scaling, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.config import ModelConfig, check
from gnp_scale.mesh import BATCH, on_mesh
from gnp_scale.models.family import Family, check_patches
from gnp_scale.models.layers import SHARDS, Dense, LayerNorm, RMSNorm, add_bias, dropout, fold, param
from gnp_scale.models.layouts import with_row_major_gradient, with_stored_gradient
from gnp_scale.models.torch_weights import name_by_table
from gnp_scale.models.transformer import TOKENS, Block, ParallelBlock, ViTConfig, cut_patches, initializer

SIZES = {
    "vit_mu": ViTConfig(32, 1, 128, 2),  # For tests, as in big_vision.
    # Table 2 of arXiv 2106.04560, with M as in big_vision and H of table 1 of arXiv 2010.11929.
    "vit_ti": ViTConfig(192, 12, 768, 3),
    "vit_s": ViTConfig(384, 12, 1536, 6),
    "vit_m": ViTConfig(512, 12, 2048, 8),
    "vit_b": ViTConfig(768, 12, 3072, 12),
    "vit_l": ViTConfig(1024, 24, 4096, 16),
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
    return replace(size, depth=depth, num_heads=num_heads, attention=config.attention)


def check_shapes(
    config: ModelConfig, image_shape: tuple[int, int, int], sizes: Mapping[str, ViTConfig] = SIZES
) -> None:
    """Raises ConfigError unless the patches divide the image and the heads divide the width."""
    check_patches(config, image_shape)
    size = size_of(config, sizes)
    check(
        size.width % size.num_heads == 0,
        f"{size.num_heads} attention heads do not divide a width of {size.width}: "
        "change model.num_heads or model.width",
    )


class VisionTransformer(nnx.Module):
    """Pre-norm transformer over image patches with learned positions.

    Parameters are initialised as in big_vision: kernels Xavier-uniform, embedding LeCun-normal, positions normal with
    standard deviation 1 / sqrt(D), class token and head zero. The class token has its own position (arXiv 2010.11929,
    equation 1).

    DeiT-III follows its authors' code instead: the class token has no position, every block the same probability of
    being dropped, and parameters are initialised by `initializer`, except the embedding, which has the uniform kernel
    of PyTorch's convolutions, and biases, which are zero.
    """

    sizes: Mapping[str, ViTConfig] = SIZES

    def __init__(
        self, key: jax.Array, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        size = size_of(config, self.sizes)
        patch, width = config.patch_size, size.width
        embed_key, position_key, blocks_key, token_key, head_key = jax.random.split(key, 5)
        num_patches = (image_shape[0] // patch) * (image_shape[1] // patch)
        num_positions = num_patches + (config.pool == "token" and not size.deit)
        self.config, self.size = config, size
        self.block = self.block_type(size)
        axes: dict[str, Any] = {"in_axis": (0, 1, 2), "out_axis": 3}
        self.embed = Dense(
            embed_key,
            "bhpwqc,pqcd->bhwd",
            (patch, patch, image_shape[2], width),
            init=variance_scaling(1 / 3, "fan_in", "uniform", **axes) if size.deit else lecun_normal(**axes),
            spec=P(None, None, None, SHARDS),
            out_spec=P(BATCH, None, None, None),
            gathered=SHARDS,
        )
        if config.pool == "token":
            self.token = param(token_key, initializer(size, zeros), (1, width), P(None, SHARDS))
        init = initializer(size, normal(width**-0.5))
        self.position = param(position_key, init, (num_positions, width), P(None, SHARDS))
        self.blocks = self._make_blocks(jax.random.split(blocks_key, size.depth))
        self.norm = RMSNorm(key, width) if size.parallel else LayerNorm(key, width)
        self.head = Dense(
            head_key,
            "bd,dc->bc",
            (width, num_classes),
            init=initializer(size, zeros),
            spec=P(SHARDS, None),
            out_spec=P(BATCH, None),
            gathered=SHARDS,
        )

    def block_type(self, size: ViTConfig) -> type[Block] | type[ParallelBlock]:
        """The class of the blocks."""
        return ParallelBlock if size.parallel else Block

    def _make_blocks(self, keys: jax.Array) -> Any:
        def make(key: jax.Array) -> Block | ParallelBlock:
            return self.block(key, self.size, self.config.dropout)

        if self.config.scan_layers:
            return jax.vmap(make)(keys)
        return nnx.Dict({f"{number:02d}": make(key) for number, key in enumerate(keys)})

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        config, depth = self.config, self.size.depth
        key_B = key_B if train else None
        x_BxNxD = self._embed_patches(image_BxHxWxC.astype(config.dtype))
        x_BxNxD = dropout(x_BxNxD, config.dropout, fold(key_B, depth))
        first_rate = config.drop_path if self.size.deit else 0.0
        drop_rates = jnp.linspace(first_rate, config.drop_path, depth) if config.drop_path else None
        run = self.block.__call__
        if config.remat:
            run = jax.checkpoint(run, prevent_cse=not config.scan_layers)
        if config.scan_layers:
            layers = self.blocks, jnp.arange(depth), drop_rates
            x_BxNxD, _ = jax.lax.scan(lambda x, layer: (run(layer[0], x, *layer[1:], key_B), None), x_BxNxD, layers)
        else:
            for number, block in enumerate(self.blocks.values()):
                x_BxNxD = with_stored_gradient(x_BxNxD)
                x_BxNxD = run(block, x_BxNxD, number, None if drop_rates is None else drop_rates[number], key_B)
        return self.head(self.pool(x_BxNxD))

    def pool(self, x_BxNxD: jax.Array) -> jax.Array:
        """The input of the head (float32 B x D) from the output of the blocks."""
        x_BxNxD = self.norm(x_BxNxD).astype(jnp.float32)
        return x_BxNxD[:, 0] if self.config.pool == "token" else jnp.mean(x_BxNxD, axis=1)

    def _embed_patches(self, image_BxHxWxC: jax.Array) -> jax.Array:
        num_examples, patches = len(image_BxHxWxC), cut_patches(image_BxHxWxC, self.config.patch_size)
        x_BxNxD = self.embed(patches).reshape(num_examples, -1, self.size.width)
        position_NxD = mesh.gather(self.position[...], SHARDS)
        if self.size.deit:
            x_BxNxD = add_bias(x_BxNxD, position_NxD)
        if self.config.pool == "token":
            x_BxNxD = jnp.concatenate([self.token_like(x_BxNxD), x_BxNxD], axis=1)
        if platform() == "gpu":
            x_BxNxD = with_row_major_gradient(x_BxNxD)
        return x_BxNxD if self.size.deit else add_bias(x_BxNxD, position_NxD)

    def token_like(self, x_BxNxD: jax.Array) -> jax.Array:
        """The class token (B x 1 x D) for the examples of `x_BxNxD`, in its type."""
        token_1xD = mesh.gather(self.token[...], SHARDS)
        shape = (len(x_BxNxD), *token_1xD.shape)
        # Broadcast in float32, then cast to the type of the tokens: its gradient is a float32 sum over examples.
        token_Bx1xD = jnp.broadcast_to(upcast(token_1xD)[None], shape, out_sharding=on_mesh(TOKENS))
        return token_Bx1xD.astype(x_BxNxD.dtype)


BLOCK_TORCH_NAMES = {
    "norm_attention": "norm1",
    "attention/in_proj": "attn.qkv",
    "attention/out_proj": "attn.proj",
    "attention/out_proj/scale": "ls1.gamma",
    "norm_mlp": "norm2",
    "mlp/in_proj": "mlp.fc1",
    "mlp/out_proj": "mlp.fc2",
    "mlp/out_proj/scale": "ls2.gamma",
}
_TORCH_NAMES = {"embed": "patch_embed.proj", "norm": "norm", "head": "head"}


def torch_name(path: str) -> str:
    """The name of a parameter in timm."""
    *modules, leaf = path.split("/")
    match modules:
        case []:
            return {"token": "cls_token", "position": "pos_embed"}[leaf]
        case ["blocks", number, *inner]:
            return f"blocks.{int(number)}.{name_by_table(inner, leaf, BLOCK_TORCH_NAMES)}"
        case _:
            return name_by_table(modules, leaf, _TORCH_NAMES)


FAMILY = Family(
    SIZES,
    VisionTransformer,
    (
        "patch_size",
        "pool",
        "depth",
        "width",
        "num_heads",
        "dropout",
        "drop_path",
        "attention",
        "remat",
        "scan_layers",
    ),
    check_shapes,
)
