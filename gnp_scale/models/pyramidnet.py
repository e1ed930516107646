"""Pyramidal residual networks (arXiv 1610.02915) with additive widening, for images of about 32x32.

Each block is wider than the one before it, and shortcuts have no parameters. `model.shake_drop` adds ShakeDrop (arXiv
1802.02375). Kernels of odd widths are not sharded, because an axis of a mesh does not divide them; the largest has
2.7 MiB.

Shapes: B examples, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gnp_scale.config import ModelConfig, check
from gnp_scale.mesh import AXES, batch_spec, on_mesh
from gnp_scale.models import recompute
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import TORCH_HEAD_INIT, Conv, Head, shard_examples, shard_examples_over_all
from gnp_scale.models.family import Family, ImageShape
from gnp_scale.models.layers import fold
from gnp_scale.models.shake import shake_drop

NUM_GROUPS, FIRST_WIDTH = 3, 16


class BasicBlock(nnx.Module):
    """norm, and two 3x3 convolutions with norms; a ReLU only between the convolutions."""

    num_convs, expansion = 2, 1

    def __init__(self, key: jax.Array, num_in: int, width: int, stride: int, bn_group_size: int) -> None:
        key_1, key_2 = jax.random.split(key)
        self.norm_1 = BatchNorm(key, num_in, bn_group_size)
        self.conv_1 = Conv(key_1, 3, num_in, width, stride)
        self.norm_2 = BatchNorm(key, width, bn_group_size)
        self.conv_2 = Conv(key_2, 3, width, width)
        self.norm_3 = BatchNorm(key, width, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y = self.conv_1(self.norm_1(x_BxHxWxC, train))
        y = self.conv_2(jax.nn.relu(self.norm_2(y, train)))
        return self.norm_3(y, train)


class Bottleneck(nnx.Module):
    """norm, and convolutions of 1x1, 3x3 and 1x1 with norms; ReLUs only between the convolutions."""

    num_convs, expansion = 3, 4

    def __init__(self, key: jax.Array, num_in: int, width: int, stride: int, bn_group_size: int) -> None:
        key_1, key_2, key_3 = jax.random.split(key, 3)
        self.norm_1 = BatchNorm(key, num_in, bn_group_size)
        self.conv_1 = Conv(key_1, 1, num_in, width)
        self.norm_2 = BatchNorm(key, width, bn_group_size)
        self.conv_2 = Conv(key_2, 3, width, width, stride)
        self.norm_3 = BatchNorm(key, width, bn_group_size)
        self.conv_3 = Conv(key_3, 1, width, self.expansion * width)
        self.norm_4 = BatchNorm(key, self.expansion * width, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y = self.conv_1(self.norm_1(x_BxHxWxC, train))
        y = self.conv_2(jax.nn.relu(self.norm_2(y, train)))
        y = self.conv_3(jax.nn.relu(self.norm_3(y, train)))
        return self.norm_4(y, train)


# The networks for CIFAR of arXiv 1610.02915; 110_48 and 164_48 as in its authors' code.
LAYOUTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], int, int]] = {
    "pyramidnet_110_48": (BasicBlock, 110, 48),
    "pyramidnet_110_270": (BasicBlock, 110, 270),
    "pyramidnet_164_48": (Bottleneck, 164, 48),
    "pyramidnet_164_270": (Bottleneck, 164, 270),
    "pyramidnet_200_240": (Bottleneck, 200, 240),
    "pyramidnet_272_200": (Bottleneck, 272, 200),
}
"""The block, the number of convolutions in the longest path, and by how much the last block is wider than the stem."""


class PyramidNet(nnx.Module):
    """A 3x3 convolution, three groups of blocks, and the head; the last two groups halve the image."""

    def __init__(
        self,
        key: jax.Array,
        config: ModelConfig,
        image_shape: ImageShape,
        num_classes: int,
        bn_group_size: int,
    ) -> None:
        stem_key, blocks_key, head_key = jax.random.split(key, 3)
        block, depth, widening = LAYOUTS[config.name]
        self.dtype, self.remat = config.dtype, config.remat
        self.shake_drop, self.gradient = config.shake_drop, config.shake_gradient
        self.conv = Conv(stem_key, 3, image_shape[-1], FIRST_WIDTH)
        self.norm_1 = BatchNorm(key, FIRST_WIDTH, bn_group_size)
        group_size = (depth - 2) // (NUM_GROUPS * block.num_convs)
        num_blocks = NUM_GROUPS * group_size
        num_out, blocks = FIRST_WIDTH, {}
        for number, block_key in enumerate(jax.random.split(blocks_key, num_blocks)):
            # Rounded to the nearest as in the authors' code: the paper rounds down.
            width = round(FIRST_WIDTH + widening * (number + 1) / num_blocks)
            stride = 2 if number in (group_size, 2 * group_size) else 1
            blocks[f"{number:02d}"] = block(block_key, num_out, width, stride, bn_group_size)
            num_out = block.expansion * width
        self.blocks = nnx.Dict(blocks)
        self.norm_2 = BatchNorm(key, num_out, bn_group_size)
        self.head = Head(head_key, num_out, num_classes, init=TORCH_HEAD_INIT)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        key_B = shard_examples(key_B, AXES) if train and key_B is not None else None
        x_BxHxWxC = self.conv(shard_examples_over_all(image_BxHxWxC.astype(self.dtype)))
        x_BxHxWxC = self.norm_1(x_BxHxWxC, train)
        for number, block in enumerate(self.blocks.values()):
            # The linear decay rule of arXiv 1802.02375.
            rate = self.shake_drop * (number + 1) / len(self.blocks)
            y = recompute.call(block, x_BxHxWxC, train, remat=self.remat)
            y = shake_drop(y, rate, fold(key_B, number), self.gradient)
            x_BxHxWxC = _shortcut(x_BxHxWxC, y.shape) + y
        return self.head(jax.nn.relu(self.norm_2(x_BxHxWxC, train)))


def _shortcut(x_BxHxWxC: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x`, averaged over 2x2 pixels if `shape` has fewer of them, with zeros for the channels that it lacks."""
    num_examples, height, width, num_channels = shape
    if x_BxHxWxC.shape[1] != height:
        windows = (num_examples, height, 2, width, 2, x_BxHxWxC.shape[-1])
        spec = on_mesh(batch_spec(len(windows), AXES))
        x_BxHxWxC = jnp.mean(jnp.reshape(x_BxHxWxC, windows, out_sharding=spec), axis=(2, 4))
    return jnp.pad(x_BxHxWxC, ((0, 0), (0, 0), (0, 0), (0, num_channels - x_BxHxWxC.shape[-1])))


def _check(config: ModelConfig, image_shape: ImageShape) -> None:
    height, width, _ = image_shape
    check(
        height % 4 == width % 4 == 0,
        f"{config.name} halves images twice, which {height}x{width} does not allow: use sides that 4 divides",
    )
    check(
        config.shake_drop > 0 or config.shake_gradient == "published",
        f"model.shake_gradient is {config.shake_gradient}, which has no effect without ShakeDrop: "
        "set model.shake_drop, for example to 0.5",
    )


FAMILY = Family(LAYOUTS, PyramidNet, ("shake_drop", "shake_gradient", "num_bn_groups", "remat"), _check)
