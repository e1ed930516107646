"""Wide residual networks (arXiv 1605.07146) with pre-activation, for images of about 32x32.

Shapes: B examples, H height, W width, C channels.
"""

import jax
from flax import nnx

from gnp_scale.config import ModelConfig
from gnp_scale.mesh import AXES
from gnp_scale.models import recompute
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import Conv, Head, shard_examples, shard_examples_over_all
from gnp_scale.models.family import Family
from gnp_scale.models.layers import dropout, fold

LAYOUTS = {"wrn_16_4": (16, 4), "wrn_28_10": (28, 10), "wrn_40_10": (40, 10)}
"""Number of convolutions in the longest path, and width factor."""


class WideBlock(nnx.Module):
    """shortcut(x) + conv(dropout(relu(norm(conv(relu(norm(x))))))); a 1x1 shortcut also starts from relu(norm(x))."""

    def __init__(
        self, key: jax.Array, num_in: int, num_out: int, stride: int, dropout_rate: float, bn_group_size: int
    ) -> None:
        key_1, key_2, shortcut_key = jax.random.split(key, 3)
        self.dropout_rate = dropout_rate
        self.norm_1 = BatchNorm(key, num_in, bn_group_size)
        self.conv_1 = Conv(key_1, 3, num_in, num_out, stride)
        self.norm_2 = BatchNorm(key, num_out, bn_group_size)
        self.conv_2 = Conv(key_2, 3, num_out, num_out)
        self.shortcut = None if num_in == num_out else Conv(shortcut_key, 1, num_in, num_out, stride)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool, key_B: jax.Array | None) -> jax.Array:
        y = jax.nn.relu(self.norm_1(x_BxHxWxC, train))
        shortcut = x_BxHxWxC if self.shortcut is None else self.shortcut(y)
        y = jax.nn.relu(self.norm_2(self.conv_1(y), train))
        return shortcut + self.conv_2(dropout(y, self.dropout_rate, key_B))


class WideResNet(nnx.Module):
    """A 3x3 convolution, three groups of blocks, and the head; the last two groups halve the image."""

    def __init__(
        self,
        key: jax.Array,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        bn_group_size: int,
    ) -> None:
        stem_key, blocks_key, head_key = jax.random.split(key, 3)
        depth, factor = LAYOUTS[config.name]
        self.dtype, self.remat = config.dtype, config.remat
        self.conv = Conv(stem_key, 3, image_shape[-1], 16)
        num_out, blocks = 16, {}
        for group, group_key in enumerate(jax.random.split(blocks_key, 3)):
            for number, block_key in enumerate(jax.random.split(group_key, (depth - 4) // 6)):
                num_in, num_out = num_out, 16 * factor * 2**group
                stride = 2 if group > 0 and number == 0 else 1
                blocks[f"{group}_{number:02d}"] = WideBlock(
                    block_key, num_in, num_out, stride, config.dropout, bn_group_size
                )
        self.blocks = nnx.Dict(blocks)
        self.norm = BatchNorm(key, num_out, bn_group_size)
        self.head = Head(head_key, num_out, num_classes)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        key_B = shard_examples(key_B, AXES) if train and key_B is not None else None
        x_BxHxWxC = self.conv(shard_examples_over_all(image_BxHxWxC.astype(self.dtype)))
        for number, block in enumerate(self.blocks.values()):
            x_BxHxWxC = recompute.call(block, x_BxHxWxC, train, fold(key_B, number), remat=self.remat)
        return self.head(jax.nn.relu(self.norm(x_BxHxWxC, train)))


FAMILY = Family(LAYOUTS, WideResNet, ("dropout", "num_bn_groups", "remat"))
