"""Swin transformers (arXiv 2103.14030): attention in windows, which are shifted in every second block.

Channels are not sharded: `tensor` is one more axis of examples. Kernels are stored in shards over `fsdp` and `tensor`.

Shapes: B examples, H height, W width, C channels, M windows, N tokens of a window.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, variance_scaling
from jax.typing import ArrayLike

from gnp_scale.config import ModelConfig, check
from gnp_scale.mesh import AXES
from gnp_scale.models import recompute
from gnp_scale.models.conv_layers import Head, shard_examples, shard_examples_over_all
from gnp_scale.models.family import Family, ImageShape
from gnp_scale.models.layers import LayerNorm, drop_path, dropout, fold, gelu, rising_rates
from gnp_scale.models.layouts import with_stored_gradient
from gnp_scale.models.torch_weights import name_by_table
from gnp_scale.models.windows import Pair, WindowAttention, dense, from_windows, reshaped, shift_mask, to_windows

# The variants of arXiv 2103.14030.
LAYOUTS = {
    "swin_t": (96, (2, 2, 6, 2)),
    "swin_s": (96, (2, 2, 18, 2)),
    "swin_b": (128, (2, 2, 18, 2)),
    "swin_l": (192, (2, 2, 18, 2)),
}
"""Channels of the first stage, and blocks of each."""
PATCH = 4
REDUCTION = 32
"""Pixels of an image for each token of the last stage, along each side. Its only window is the whole image: windows of
7x7 tokens for images of 224x224 and of 12x12 for 384x384, as published."""


def check_shapes(config: ModelConfig, image_shape: ImageShape) -> None:
    """Raises ConfigError unless the image divides into patches, and each stage into windows."""
    height, width, _ = image_shape
    check(
        height % REDUCTION == 0 and width % REDUCTION == 0,
        f"{config.name} needs images whose sides are multiples of {REDUCTION}, and these are {height}x{width}: "
        "change data.image_size or model.name",
    )


class Norm(LayerNorm):
    """With PyTorch's own epsilon, as in the authors' code."""

    eps = 1e-5


class Patches(nnx.Module):
    """Non-overlapping patches of the image, through a linear map and a normalisation.

    The kernel has the initial values of PyTorch's convolutions, as in the authors' code; the bias is 0.
    """

    def __init__(self, key: jax.Array, num_in: int, num_out: int) -> None:
        init = variance_scaling(1 / 3, "fan_in", "uniform", in_axis=(0, 1, 2), out_axis=3)
        self.dense = dense(key, "bhpwqc,pqcd->bhwd", (PATCH, PATCH, num_in, num_out), init)
        self.norm = Norm(key, num_out)

    def __call__(self, image_BxHxWxC: jax.Array) -> jax.Array:
        num_examples, height, width, channels = image_BxHxWxC.shape
        shape = (num_examples, height // PATCH, PATCH, width // PATCH, PATCH, channels)
        return self.norm(self.dense(reshaped(image_BxHxWxC, shape)))


class Merging(nnx.Module):
    """Each 2x2 tokens become one of twice the channels."""

    def __init__(self, key: jax.Array, num_in: int) -> None:
        self.norm = Norm(key, 4 * num_in)
        self.reduction = dense(key, "bhwc,cd->bhwd", (4 * num_in, 2 * num_in), use_bias=False)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        # The authors' order: the column of a token in the square before its row.
        quarters = [x_BxHxWxC[:, row::2, column::2] for column, row in itertools.product(range(2), repeat=2)]
        return self.reduction(self.norm(jnp.concatenate(quarters, axis=-1)))


class Mlp(nnx.Module):
    """Two dense layers with an exact GELU between them."""

    def __init__(self, key: jax.Array, num_channels: int, dropout_rate: float) -> None:
        in_key, out_key = jax.random.split(key)
        self.dropout_rate = dropout_rate
        self.in_proj = dense(in_key, "bhwc,cf->bhwf", (num_channels, 4 * num_channels))
        self.out_proj = dense(out_key, "bhwf,fc->bhwc", (4 * num_channels, num_channels))

    def __call__(self, x_BxHxWxC: jax.Array, key_B: jax.Array | None) -> jax.Array:
        return self.out_proj(dropout(gelu(self.in_proj(x_BxHxWxC), approximate=False), self.dropout_rate, key_B))


class Block(nnx.Module):
    """x + Attention(LayerNorm(x)) in windows that are shifted by `shift`, then x + MLP(LayerNorm(x))."""

    def __init__(self, key: jax.Array, num_channels: int, window: Pair, shift: Pair, dropout_rate: float) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.window, self.shift, self.dropout_rate = window, shift, dropout_rate
        self.norm_attention = Norm(key, num_channels)
        self.attention = WindowAttention(attention_key, num_channels, window)
        self.norm_mlp = Norm(key, num_channels)
        self.mlp = Mlp(mlp_key, num_channels, dropout_rate)

    def __call__(
        self, x_BxHxWxC: jax.Array, number: ArrayLike, drop_rate: jax.Array | None, key_B: jax.Array | None
    ) -> jax.Array:
        key_B = fold(key_B, number)
        y_BxHxWxC = dropout(self._attend(self.norm_attention(x_BxHxWxC)), self.dropout_rate, fold(key_B, 0))
        x_BxHxWxC += drop_path(y_BxHxWxC, drop_rate, fold(key_B, 1))
        y_BxHxWxC = dropout(self.mlp(self.norm_mlp(x_BxHxWxC), fold(key_B, 2)), self.dropout_rate, fold(key_B, 3))
        return x_BxHxWxC + drop_path(y_BxHxWxC, drop_rate, fold(key_B, 4))

    def _attend(self, x_BxHxWxC: jax.Array) -> jax.Array:
        _, height, width, _ = x_BxHxWxC.shape
        if not any(self.shift):
            return from_windows(self.attention(to_windows(x_BxHxWxC, self.window), None), (height, width), self.window)
        shifted = jnp.roll(x_BxHxWxC, [-shift for shift in self.shift], (1, 2))
        mask_MxNxN = shift_mask((height, width), self.window, self.shift)
        y_BxMxNxC = self.attention(to_windows(shifted, self.window), mask_MxNxN)
        return jnp.roll(from_windows(y_BxMxNxC, (height, width), self.window), self.shift, (1, 2))


class SwinTransformer(nnx.Module):
    """Four stages of blocks; between them the image gets half the sides and twice the channels.

    Kernels and position biases are initially normal with a standard deviation of 0.02, as in the authors' code. The
    probability that a block is dropped rises linearly over all stages.
    """

    def __init__(self, key: jax.Array, config: ModelConfig, image_shape: ImageShape, num_classes: int) -> None:
        patches_key, blocks_key, head_key = jax.random.split(key, 3)
        num_channels, num_blocks = LAYOUTS[config.name]
        window = image_shape[0] // REDUCTION, image_shape[1] // REDUCTION
        self.config, self.num_blocks = config, num_blocks
        self.patches = Patches(patches_key, image_shape[2], num_channels)
        merging, blocks = {}, {}
        for stage, stage_key in enumerate(jax.random.split(blocks_key, len(num_blocks))):
            merging_key, *block_keys = jax.random.split(stage_key, 1 + num_blocks[stage])
            if stage > 0:
                merging[f"{stage}"] = Merging(merging_key, num_channels)
                num_channels *= 2
            for number, block_key in enumerate(block_keys):
                # The last stage has only one window.
                is_shifted = number % 2 == 1 and stage < len(num_blocks) - 1
                shift = (window[0] // 2, window[1] // 2) if is_shifted else (0, 0)
                blocks[f"{stage}_{number:02d}"] = Block(block_key, num_channels, window, shift, config.dropout)
        self.merging, self.blocks = nnx.Dict(merging), nnx.Dict(blocks)
        self.norm = Norm(key, num_channels)
        self.head = Head(head_key, num_channels, num_classes, init=normal(0.02))

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        config, depth = self.config, sum(self.num_blocks)
        key_B = shard_examples(key_B, AXES) if train and key_B is not None else None
        x_BxHxWxC = self.patches(shard_examples_over_all(image_BxHxWxC.astype(config.dtype)))
        x_BxHxWxC = dropout(x_BxHxWxC, config.dropout, fold(key_B, depth))
        drop_rates = rising_rates(config.drop_path, depth)
        run = recompute.checkpointed(Block.__call__, config.remat)
        for number, (name, block) in enumerate(self.blocks.items()):
            if name.endswith("_00") and name != "0_00":
                x_BxHxWxC = self.merging[name.removesuffix("_00")](x_BxHxWxC)
            x_BxHxWxC = with_stored_gradient(x_BxHxWxC)
            x_BxHxWxC = run(block, x_BxHxWxC, number, drop_rates[number], key_B)
        return self.head(self.norm(x_BxHxWxC))


_TORCH_NAMES = {
    "patches/dense": "patch_embed.proj",
    "patches/norm": "patch_embed.norm",
    "norm_attention": "norm1",
    "attention/in_proj": "attn.qkv",
    "attention/out_proj": "attn.proj",
    "attention/position": "attn.relative_position_bias_table",
    "norm_mlp": "norm2",
    "mlp/in_proj": "mlp.fc1",
    "mlp/out_proj": "mlp.fc2",
    "norm": "norm",
    "reduction": "reduction",
    "head/dense": "head.fc",
}


def torch_name(path: str) -> str:
    """The name of a parameter in timm."""
    *modules, leaf = path.split("/")
    match modules:
        case ["blocks", name, *inner]:
            stage, number = name.split("_")
            return f"layers.{stage}.blocks.{int(number)}.{name_by_table(inner, leaf, _TORCH_NAMES)}"
        case ["merging", stage, *inner]:
            return f"layers.{stage}.downsample.{name_by_table(inner, leaf, _TORCH_NAMES)}"
        case _:
            return name_by_table(modules, leaf, _TORCH_NAMES)


FAMILY = Family(LAYOUTS, SwinTransformer, ("dropout", "drop_path", "remat"), check_shapes)
