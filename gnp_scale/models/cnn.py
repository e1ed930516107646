"""A small convolutional network for experiments that a CPU finishes; this project's own.

Shapes: B examples, H height, W width, C channels.
"""

import jax
from flax import nnx

from gnp_scale.config import ModelConfig
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import Conv, Head, shard_examples_over_all
from gnp_scale.models.family import Family

LAYOUTS = {"cnn_s": (32, 64, 128)}
"""Channels of each layer."""


class Layer(nnx.Module):
    """relu(norm(conv(x))), which halves the image."""

    def __init__(self, key: jax.Array, num_in: int, num_out: int, bn_group_size: int) -> None:
        self.conv = Conv(key, 3, num_in, num_out, stride=2)
        self.norm = BatchNorm(key, num_out, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        return jax.nn.relu(self.norm(self.conv(x_BxHxWxC), train))


class CNN(nnx.Module):
    """Layers of 3x3 convolutions with stride 2, and the head.

    The strides replace pooling, so that few multiply-adds remain.
    """

    def __init__(
        self,
        key: jax.Array,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        bn_group_size: int,
    ) -> None:
        layout = LAYOUTS[config.name]
        head_key, *keys = jax.random.split(key, len(layout) + 1)
        self.dtype = config.dtype
        num_out, stages = image_shape[-1], {}
        for number, width in enumerate(layout):
            stages[str(number)] = Layer(keys[number], num_out, width, bn_group_size)
            num_out = width
        self.stages = nnx.Dict(stages)
        self.head = Head(head_key, num_out, num_classes)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        del key_B  # This network is not random.
        x_BxHxWxC = shard_examples_over_all(image_BxHxWxC.astype(self.dtype))
        for stage in self.stages.values():
            x_BxHxWxC = stage(x_BxHxWxC, train)
        return self.head(x_BxHxWxC)


FAMILY = Family(LAYOUTS, CNN, ("num_bn_groups",))
