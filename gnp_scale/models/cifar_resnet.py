"""Residual networks for images of about 32x32 (arXiv 1512.03385, section 4.2), with shortcuts without parameters.

Shapes: B examples, H height, W width, C channels.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from gnp_scale.config import ModelConfig
from gnp_scale.models import recompute, resnet
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import Conv, Head, shard_examples_over_all
from gnp_scale.models.family import Family

# Table 6 of arXiv 1512.03385: 6n + 2 layers.
LAYOUTS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18}
"""Number of blocks in each of the three stages."""


class CifarBlock(nnx.Module):
    """relu(shortcut(x) + two 3x3 convolutions of x)."""

    def __init__(self, key: jax.Array, num_in: int, num_out: int, stride: int, bn_group_size: int) -> None:
        key_1, key_2 = jax.random.split(key)
        self.stride, self.num_new = stride, num_out - num_in
        self.conv_1 = Conv(key_1, 3, num_in, num_out, stride)
        self.norm_1 = BatchNorm(key, num_out, bn_group_size)
        self.conv_2 = Conv(key_2, 3, num_out, num_out)
        self.norm_2 = BatchNorm(key, num_out, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm_1(self.conv_1(x_BxHxWxC), train))
        y = self.norm_2(self.conv_2(y), train)
        return jax.nn.relu(self._shortcut(x_BxHxWxC) + y)

    def _shortcut(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Option A: every `stride`-th pixel, with channels of zeros; half of them come first, as in later code."""
        before = self.num_new // 2
        x_BxHxWxC = x_BxHxWxC[:, :: self.stride, :: self.stride]
        return jnp.pad(x_BxHxWxC, ((0, 0), (0, 0), (0, 0), (before, self.num_new - before)))


class CifarResNet(nnx.Module):
    """A 3x3 convolution, three stages of blocks with 16, 32 and 64 channels, and the head.

    The last two stages halve the image. All scales of normalisation start at 1, as published.
    """

    def __init__(
        self,
        key: jax.Array,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        bn_group_size: int,
    ) -> None:
        stem_key, blocks_key, head_key = jax.random.split(key, 3)
        self.dtype, self.remat = config.dtype, config.remat
        self.conv = Conv(stem_key, 3, image_shape[-1], 16)
        self.norm = BatchNorm(key, 16, bn_group_size)
        num_out, blocks = 16, {}
        for stage, stage_key in enumerate(jax.random.split(blocks_key, 3)):
            for number, block_key in enumerate(jax.random.split(stage_key, LAYOUTS[config.name])):
                num_in, num_out = num_out, 16 * 2**stage
                stride = 2 if stage > 0 and number == 0 else 1
                blocks[f"{stage}_{number:02d}"] = CifarBlock(block_key, num_in, num_out, stride, bn_group_size)
        self.blocks = nnx.Dict(blocks)
        self.head = Head(head_key, num_out, num_classes)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        del key_B  # This network is not random.
        x_BxHxWxC = shard_examples_over_all(image_BxHxWxC.astype(self.dtype))
        x_BxHxWxC = jax.nn.relu(self.norm(self.conv(x_BxHxWxC), train))
        for block in self.blocks.values():
            x_BxHxWxC = recompute.call(block, x_BxHxWxC, train, remat=self.remat)
        return self.head(x_BxHxWxC)


def torch_name(path: str) -> str:
    """The name of a parameter or statistic in github.com/akamaster/pytorch_resnet_cifar10."""
    return resnet.torch_name(path).replace("fc.", "linear.")


FAMILY = Family(LAYOUTS, CifarResNet, ("num_bn_groups", "remat"))
