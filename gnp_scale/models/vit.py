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
from jax.nn.initializers import lecun_normal, normal, variance_scaling, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.config import ModelConfig
from gnp_scale.mesh import BATCH
from gnp_scale.models import recompute, sequence
from gnp_scale.models.family import Family
from gnp_scale.models.layers import SHARDS, Dense, LayerNorm, RMSNorm, add_bias, dropout, fold, param
from gnp_scale.models.layouts import with_row_major_gradient, with_stored_gradient
from gnp_scale.models.pooling import AttentionPool, repeated
from gnp_scale.models.positions import Grid, sincos2d
from gnp_scale.models.torch_weights import name_by_table
from gnp_scale.models.transformer import Block, ParallelBlock, ViTConfig, cut_patches, initializer
from gnp_scale.models.vit_sizes import SIZES, check_shapes, size_of


class VisionTransformer(nnx.Module):
    """Pre-norm transformer over image patches. The order of its tokens is class token, registers, patches.

    Parameters are initialised as in big_vision: kernels Xavier-uniform, embedding LeCun-normal, positions normal with
    standard deviation 1 / sqrt(D), class token and head zero. Registers are normal with standard deviation 1e-6 and
    have no position, as in DINOv2. The class token has its own learned position (arXiv 2010.11929, equation 1), but
    no fixed one.

    DeiT-III follows its authors' code instead: the class token has no position, every block the same probability of
    being dropped, and parameters are initialised by `initializer`, except the embedding, which has the uniform kernel
    of PyTorch's convolutions, and biases, which are zero.
    """

    sizes: Mapping[str, ViTConfig] = SIZES

    def __init__(
        self, key: jax.Array, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        size, patch = size_of(config, self.sizes), config.patch_size
        num_others = config.num_registers + (config.pool == "token")
        self.grid = Grid(image_shape[0] // patch, image_shape[1] // patch, num_others)
        if config.position == "rope":
            size = replace(size, grid=self.grid)
        width = size.width
        embed_key, position_key, blocks_key, token_key, head_key = jax.random.split(key, 5)
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
        if config.num_registers:
            shape = (config.num_registers, width)
            self.registers = param(jax.random.fold_in(token_key, 0), normal(1e-6), shape, P(None, SHARDS))
        if config.position == "learned":
            num_positions = self.grid.num_rows * self.grid.num_columns + self.token_has_position
            init = initializer(size, normal(width**-0.5))
            self.position = param(position_key, init, (num_positions, width), P(None, SHARDS))
        self.blocks = self._make_blocks(jax.random.split(blocks_key, size.depth))
        self.norm = RMSNorm(key, width) if size.parallel else LayerNorm(key, width)
        self._make_pool(jax.random.fold_in(head_key, 0))
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

    @property
    def token_has_position(self) -> bool:
        """Whether a learned position is added to a class token."""
        return self.config.pool == "token" and self.config.position == "learned" and not self.size.deit

    def _make_pool(self, key: jax.Array) -> None:
        """Attention pooling, and the layer before the head, whose kernel is LeCun-normal as in big_vision."""
        pool_key, rep_key = jax.random.split(key)
        if self.config.pool == "attention":
            self.attention_pool = AttentionPool(pool_key, self.size)
        if self.config.rep_layer:
            self.rep = Dense(
                rep_key,
                "bd,de->be",
                (self.size.width, self.size.width),
                init=initializer(self.size, lecun_normal()),
                spec=P(SHARDS, None),
                out_spec=P(BATCH, None),
                gathered=SHARDS,
            )

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
        if self.size.sequence_parallel:
            x_BxNxD = sequence.shard(x_BxNxD, config.num_registers)
        x_BxNxD = dropout(x_BxNxD, config.dropout, fold(key_B, depth))
        first_rate = config.drop_path if self.size.deit else 0.0
        drop_rates = jnp.linspace(first_rate, config.drop_path, depth) if config.drop_path else None
        run = recompute.checkpointed(self.block.__call__, config.remat, in_scan=config.scan_layers)
        if config.scan_layers:
            layers = self.blocks, jnp.arange(depth), drop_rates
            x_BxNxD, _ = jax.lax.scan(lambda x, layer: (run(layer[0], x, *layer[1:], key_B), None), x_BxNxD, layers)
        else:
            for number, block in enumerate(self.blocks.values()):
                x_BxNxD = with_stored_gradient(x_BxNxD)
                x_BxNxD = run(block, x_BxNxD, number, None if drop_rates is None else drop_rates[number], key_B)
        x_BxD = self.pool(x_BxNxD)
        return self.head(jnp.tanh(self.rep(x_BxD)) if config.rep_layer else x_BxD)

    def pool(self, x_BxNxD: jax.Array) -> jax.Array:
        """The input of the head, or of the layer before it (float32 B x D), from the output of the blocks."""
        x_BxNxD = self.norm(x_BxNxD)
        if self.size.sequence_parallel:
            x_BxNxD = sequence.unshard(x_BxNxD)
        match self.config.pool:
            case "average":
                return jnp.mean(self._patches(x_BxNxD).astype(jnp.float32), axis=1)
            case "attention":
                x_BxNxD = self.attention_pool(self._patches(x_BxNxD))
        return x_BxNxD[:, 0].astype(jnp.float32)

    def _patches(self, x_BxNxD: jax.Array) -> jax.Array:
        return x_BxNxD[:, self.grid.num_others :]

    def _embed_patches(self, image_BxHxWxC: jax.Array) -> jax.Array:
        config, num_examples = self.config, len(image_BxHxWxC)
        patches = cut_patches(image_BxHxWxC, config.patch_size)
        x_BxNxD = self.embed(patches).reshape(num_examples, -1, self.size.width)
        position_NxD = self._positions()
        is_early = self.size.deit or config.position == "sincos2d"
        if position_NxD is not None and is_early:
            x_BxNxD = add_bias(x_BxNxD, position_NxD)
        if config.pool == "token":
            x_BxNxD = jnp.concatenate([repeated(self.token, x_BxNxD), x_BxNxD], axis=1)
        if platform() == "gpu":
            x_BxNxD = with_row_major_gradient(x_BxNxD)
        if position_NxD is not None and not is_early:
            x_BxNxD = add_bias(x_BxNxD, position_NxD)
        if config.num_registers == 0:
            return x_BxNxD
        token, patches = jnp.split(x_BxNxD, [int(config.pool == "token")], axis=1)
        return jnp.concatenate([token, repeated(self.registers, x_BxNxD), patches], axis=1)

    def _positions(self) -> jax.Array | None:
        """What is added to the tokens (N x D)."""
        match self.config.position:
            case "learned":
                return mesh.gather(self.position[...], SHARDS)
            case "sincos2d":
                return jnp.asarray(sincos2d(self.grid, self.size.width))
            case _:
                return None


BLOCK_TORCH_NAMES = {
    "norm_attention": "norm1",
    "attention/in_proj": "attn.qkv",
    "attention/out_proj": "attn.proj",
    "attention/out_proj/scale": "ls1.gamma",
    "norm_mlp": "norm2",
    "mlp/in_proj": "mlp.fc1",
    "mlp/gate": "mlp.fc1_g",
    "mlp/value": "mlp.fc1_x",
    "mlp/out_proj": "mlp.fc2",
    "mlp/out_proj/scale": "ls2.gamma",
}
_TORCH_NAMES = {
    "embed": "patch_embed.proj",
    "norm": "norm",
    "head": "head",
    "rep": "pre_logits.fc",
    "attention_pool/latent": "attn_pool.latent",
    "attention_pool/query": "attn_pool.q",
    "attention_pool/key_value": "attn_pool.kv",
    "attention_pool/out_proj": "attn_pool.proj",
    "attention_pool/norm": "attn_pool.norm",
    "attention_pool/mlp/in_proj": "attn_pool.mlp.fc1",
    "attention_pool/mlp/out_proj": "attn_pool.mlp.fc2",
}


def torch_name(path: str) -> str:
    """The name of a parameter in timm."""
    *modules, leaf = path.split("/")
    match modules:
        case []:
            return {"token": "cls_token", "registers": "reg_token", "position": "pos_embed"}[leaf]
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
        "num_registers",
        "position",
        "mlp",
        "rep_layer",
        "depth",
        "width",
        "num_heads",
        "dropout",
        "drop_path",
        "attention",
        "remat",
        "sequence_parallel",
        "scan_layers",
    ),
    check_shapes,
)
