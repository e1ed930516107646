"""Residual networks (arXiv 1512.03385), version 1.5: the 3x3 convolution of a bottleneck has the stride.

Shapes: B examples, H height, W width, C channels.
"""

import jax
from flax import nnx
from jax.nn.initializers import zeros

from gnp_scale.config import ModelConfig
from gnp_scale.models import recompute
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import Conv, Head, max_pool, shard_examples_over_all
from gnp_scale.models.family import Family
from gnp_scale.models.torch_weights import leaf_name


class Shortcut(nnx.Module):
    """The input of a block; if its shape differs from the output's, a 1x1 convolution adapts it."""

    def __init__(self, key: jax.Array, num_in: int, num_out: int, stride: int, bn_group_size: int) -> None:
        self.is_identity = stride == 1 and num_in == num_out
        if not self.is_identity:
            self.conv = Conv(key, 1, num_in, num_out, stride)
            self.norm = BatchNorm(key, num_out, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        return x_BxHxWxC if self.is_identity else self.norm(self.conv(x_BxHxWxC), train)


class BasicBlock(nnx.Module):
    """relu(shortcut(x) + two 3x3 convolutions of x). The last scale starts at 0 (arXiv 1706.02677, section 5.1)."""

    expansion = 1

    def __init__(self, key: jax.Array, num_in: int, width: int, stride: int, bn_group_size: int) -> None:
        key_1, key_2, shortcut_key = jax.random.split(key, 3)
        self.conv_1 = Conv(key_1, 3, num_in, width, stride)
        self.norm_1 = BatchNorm(key, width, bn_group_size)
        self.conv_2 = Conv(key_2, 3, width, width)
        self.norm_2 = BatchNorm(key, width, bn_group_size, scale_init=zeros)
        self.shortcut = Shortcut(shortcut_key, num_in, width, stride, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm_1(self.conv_1(x_BxHxWxC), train))
        y = self.norm_2(self.conv_2(y), train)
        return jax.nn.relu(self.shortcut(x_BxHxWxC, train) + y)


class Bottleneck(nnx.Module):
    """relu(shortcut(x) + 1x1, 3x3 and 1x1 convolutions of x). The last scale starts at 0, as in `BasicBlock`."""

    expansion = 4

    def __init__(self, key: jax.Array, num_in: int, width: int, stride: int, bn_group_size: int) -> None:
        key_1, key_2, key_3, shortcut_key = jax.random.split(key, 4)
        num_out = self.expansion * width
        self.conv_1 = Conv(key_1, 1, num_in, width)
        self.norm_1 = BatchNorm(key, width, bn_group_size)
        self.conv_2 = Conv(key_2, 3, width, width, stride)
        self.norm_2 = BatchNorm(key, width, bn_group_size)
        self.conv_3 = Conv(key_3, 1, width, num_out)
        self.norm_3 = BatchNorm(key, num_out, bn_group_size, scale_init=zeros)
        self.shortcut = Shortcut(shortcut_key, num_in, num_out, stride, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y = jax.nn.relu(self.norm_1(self.conv_1(x_BxHxWxC), train))
        y = jax.nn.relu(self.norm_2(self.conv_2(y), train))
        y = self.norm_3(self.conv_3(y), train)
        return jax.nn.relu(self.shortcut(x_BxHxWxC, train) + y)


WIDTH = 64
"""Channels of the stem, and of the 3x3 convolutions of the first stage."""

# Table 1 of arXiv 1512.03385; 200 as in its authors' later code (arXiv 1603.05027).
LAYOUTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnet200": (Bottleneck, (3, 24, 36, 3)),
}


class ResNet(nnx.Module):
    """A stem, four stages of blocks, and the head; each stage after the first halves the image."""

    def __init__(
        self,
        key: jax.Array,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        bn_group_size: int,
    ) -> None:
        stem_key, blocks_key, head_key = jax.random.split(key, 3)
        block, num_blocks = LAYOUTS[config.name]
        self.dtype, self.stem, self.remat = config.dtype, config.stem, config.remat
        size, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.conv = Conv(stem_key, size, image_shape[-1], WIDTH, stride)
        self.norm = BatchNorm(key, WIDTH, bn_group_size)
        num_out, blocks = WIDTH, {}
        for stage, stage_key in enumerate(jax.random.split(blocks_key, len(num_blocks))):
            for number, block_key in enumerate(jax.random.split(stage_key, num_blocks[stage])):
                stride = 2 if stage > 0 and number == 0 else 1
                width = WIDTH * 2**stage
                blocks[f"{stage}_{number:02d}"] = block(block_key, num_out, width, stride, bn_group_size)
                num_out = block.expansion * width
        self.blocks = nnx.Dict(blocks)
        self.head = Head(head_key, num_out, num_classes)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        del key_B  # This network is not random.
        x_BxHxWxC = shard_examples_over_all(image_BxHxWxC.astype(self.dtype))
        x_BxHxWxC = jax.nn.relu(self.norm(self.conv(x_BxHxWxC), train))
        if self.stem == "imagenet":
            x_BxHxWxC = max_pool(x_BxHxWxC)
        for block in self.blocks.values():
            x_BxHxWxC = recompute.call(block, x_BxHxWxC, train, remat=self.remat)
        return self.head(x_BxHxWxC)


def torch_name(path: str) -> str:
    """The name of a parameter or statistic in torchvision and timm."""
    *modules, leaf = path.split("/")
    if modules[0] in ("conv", "norm"):
        modules = [{"conv": "conv1", "norm": "bn1"}[modules[0]]]
    elif modules[0] == "head":
        modules = ["fc"]
    else:
        stage, number = modules[1].split("_")
        names = {"shortcut": "downsample", "conv": "0", "norm": "1"}
        inner = [names.get(name, name.replace("conv_", "conv").replace("norm_", "bn")) for name in modules[2:]]
        modules = [f"layer{int(stage) + 1}", str(int(number)), *inner]
    return ".".join((*modules, leaf_name(leaf)))


FAMILY = Family(LAYOUTS, ResNet, ("stem", "num_bn_groups", "remat"))
