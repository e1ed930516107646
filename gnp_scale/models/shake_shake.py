"""Residual networks with two branches in each block and Shake-Shake (arXiv 1705.07485), for images of about 32x32.

Shapes: B examples, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gnp_scale.config import ModelConfig
from gnp_scale.mesh import AXES
from gnp_scale.models import recompute
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import TORCH_HEAD_INIT, Conv, Head, shard_examples, shard_examples_over_all
from gnp_scale.models.family import Family
from gnp_scale.models.layers import fold
from gnp_scale.models.shake import shake_shake

# The widths of arXiv 1705.07485.
LAYOUTS = {
    "shake_shake_26_2x32d": (26, 32),
    "shake_shake_26_2x64d": (26, 64),
    "shake_shake_26_2x96d": (26, 96),
}
"""Number of convolutions in the longest path, and channels of a branch in the first group."""


class Branch(nnx.Module):
    """norm(conv(relu(norm(conv(x))))); x is the output of a ReLU."""

    def __init__(self, key: jax.Array, num_in: int, num_out: int, stride: int, bn_group_size: int) -> None:
        key_1, key_2 = jax.random.split(key)
        self.conv_1 = Conv(key_1, 3, num_in, num_out, stride)
        self.norm_1 = BatchNorm(key, num_out, bn_group_size)
        self.conv_2 = Conv(key_2, 3, num_out, num_out)
        self.norm_2 = BatchNorm(key, num_out, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm_1(self.conv_1(x_BxHxWxC), train))
        return self.norm_2(self.conv_2(y), train)


class Shortcut(nnx.Module):
    """Two 1x1 convolutions with the stride, each with half of the channels; the second one sees other pixels.

    Its image is shifted by one pixel to the right and down, as in the authors' code. In that of the later papers with
    Flax, it is shifted to the left and up.
    """

    def __init__(self, key: jax.Array, num_in: int, num_out: int, stride: int, bn_group_size: int) -> None:
        key_1, key_2 = jax.random.split(key)
        self.stride = stride
        self.conv_1 = Conv(key_1, 1, num_in, num_out // 2, stride)
        self.conv_2 = Conv(key_2, 1, num_in, num_out // 2)
        self.norm = BatchNorm(key, num_out, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        around = ((0, 0, 0), (1, -1, 0), (1, -1, 0), (0, 0, 0))
        shifted = jax.lax.pad(x_BxHxWxC, jnp.zeros((), x_BxHxWxC.dtype), around)[:, :: self.stride, :: self.stride]
        return self.norm(jnp.concatenate((self.conv_1(x_BxHxWxC), self.conv_2(shifted)), axis=-1), train)


class ShakeShakeBlock(nnx.Module):
    """shortcut + a random mean of two branches of relu(x). A shortcut to other channels also starts from relu(x)."""

    def __init__(
        self, key: jax.Array, config: ModelConfig, num_in: int, num_out: int, stride: int, bn_group_size: int
    ) -> None:
        key_1, key_2, shortcut_key = jax.random.split(key, 3)
        self.gradient = config.shake_gradient
        self.branch_1 = Branch(key_1, num_in, num_out, stride, bn_group_size)
        self.branch_2 = Branch(key_2, num_in, num_out, stride, bn_group_size)
        is_identity = num_in == num_out
        self.shortcut = None if is_identity else Shortcut(shortcut_key, num_in, num_out, stride, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool, key_B: jax.Array | None) -> jax.Array:
        y = jax.nn.relu(x_BxHxWxC)
        shortcut = x_BxHxWxC if self.shortcut is None else self.shortcut(y, train)
        return shortcut + shake_shake(self.branch_1(y, train), self.branch_2(y, train), key_B, self.gradient)


class ShakeShake(nnx.Module):
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
        depth, width = LAYOUTS[config.name]
        self.dtype, self.remat = config.dtype, config.remat
        self.conv = Conv(stem_key, 3, image_shape[-1], 16)
        self.norm = BatchNorm(key, 16, bn_group_size)
        num_out, blocks = 16, {}
        for group, group_key in enumerate(jax.random.split(blocks_key, 3)):
            for number, block_key in enumerate(jax.random.split(group_key, (depth - 2) // 6)):
                num_in, num_out = num_out, width * 2**group
                stride = 2 if group > 0 and number == 0 else 1
                blocks[f"{group}_{number:02d}"] = ShakeShakeBlock(
                    block_key, config, num_in, num_out, stride, bn_group_size
                )
        self.blocks = nnx.Dict(blocks)
        self.head = Head(head_key, num_out, num_classes, init=TORCH_HEAD_INIT)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        key_B = shard_examples(key_B, AXES) if train and key_B is not None else None
        x_BxHxWxC = self.conv(shard_examples_over_all(image_BxHxWxC.astype(self.dtype)))
        x_BxHxWxC = self.norm(x_BxHxWxC, train)
        for number, block in enumerate(self.blocks.values()):
            x_BxHxWxC = recompute.call(block, x_BxHxWxC, train, fold(key_B, number), remat=self.remat)
        return self.head(jax.nn.relu(x_BxHxWxC))


FAMILY = Family(LAYOUTS, ShakeShake, ("shake_gradient", "num_bn_groups", "remat"))
