"""Convolutional networks as users of Flax Linen write them plainly, without random branches and dropout.

They have as many parameters and FLOPs as the project's networks (`tests/test_peers.py`), and use the statistics of the
batch.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gnp_scale.config import ModelConfig
from gnp_scale.models import pyramidnet, shake_shake, vgg, wide_resnet


class Network(nn.Module):
    """What the networks share."""

    config: ModelConfig
    num_classes: int

    def conv(self, width: int, size: int = 3, stride: int = 1, *, use_bias: bool = False) -> Any:
        """A convolution with equal padding on both sides."""
        return nn.Conv(width, (size, size), stride, size // 2, use_bias=use_bias, dtype=self.config.dtype)

    def norm(self, x: jax.Array) -> jax.Array:
        """Normalisation with the statistics of the batch."""
        return nn.BatchNorm(use_running_average=False, momentum=0.9, dtype=self.config.dtype)(x)

    def classify(self, x: jax.Array) -> jax.Array:
        """Logits from the average over pixels."""
        return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


class Vgg(Network):
    """VGG with batch normalisation (arXiv 1409.1556) for images of 224x224."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        for num_layers, width in vgg.layout_of(self.config.name):
            for _ in range(num_layers):
                x = nn.relu(self.norm(self.conv(width, use_bias=True)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = x.reshape(len(x), -1)
        for _ in range(2):
            x = nn.relu(nn.Dense(vgg.HIDDEN, dtype=self.config.dtype)(x))
        return nn.Dense(self.num_classes)(x.astype(jnp.float32))


class WideResNet(Network):
    """WideResNet (arXiv 1605.07146)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        depth, factor = wide_resnet.LAYOUTS[self.config.name]
        x = self.conv(16)(x)
        for group in range(3):
            for number in range((depth - 4) // 6):
                width, stride = 16 * factor * 2**group, 2 if group and not number else 1
                y = nn.relu(self.norm(x))
                x = x if x.shape[-1] == width else self.conv(width, 1, stride)(y)
                x = x + self.conv(width)(nn.relu(self.norm(self.conv(width, 3, stride)(y))))
        return self.classify(nn.relu(self.norm(x)))


class ShakeShake(Network):
    """Shake-Shake (arXiv 1705.07485) with the mean of two branches."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        depth, first = shake_shake.LAYOUTS[self.config.name]
        x = self.norm(self.conv(16)(x))
        for group in range(3):
            for number in range((depth - 2) // 6):
                width, stride = first * 2**group, 2 if group and not number else 1
                y = nn.relu(x)
                x = x if x.shape[-1] == width else self._shortcut(y, width, stride)
                x = x + (self._branch(y, width, stride) + self._branch(y, width, stride)) / 2
        return self.classify(nn.relu(x))

    def _branch(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        y = nn.relu(self.norm(self.conv(width, 3, stride)(x)))
        return self.norm(self.conv(width)(y))

    def _shortcut(self, x: jax.Array, width: int, stride: int) -> jax.Array:
        shifted = jnp.pad(x, ((0, 0), (1, 0), (1, 0), (0, 0)))[:, :-1, :-1]
        halves = [self.conv(width // 2, 1)(part[:, ::stride, ::stride]) for part in (x, shifted)]
        return self.norm(jnp.concatenate(halves, axis=-1))


class PyramidNet(Network):
    """PyramidNet (arXiv 1610.02915)."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        block, depth, widening = pyramidnet.LAYOUTS[self.config.name]
        num_in_group = (depth - 2) // (3 * block.num_convs)
        x = self.norm(self.conv(16)(x))
        for number in range(3 * num_in_group):
            width = round(16 + widening * (number + 1) / (3 * num_in_group))
            stride = 2 if number in (num_in_group, 2 * num_in_group) else 1
            y = self._branch(x, width, stride, block is pyramidnet.Bottleneck)
            x = nn.avg_pool(x, (2, 2), (2, 2)) if x.shape[1] > y.shape[1] else x
            x = y + jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, y.shape[-1] - x.shape[-1])))
        return self.classify(nn.relu(self.norm(x)))

    def _branch(self, x: jax.Array, width: int, stride: int, is_bottleneck: bool) -> jax.Array:
        basic = [(width, 3, stride), (width, 3, 1)]
        layers = [(width, 1, 1), (width, 3, stride), (4 * width, 1, 1)] if is_bottleneck else basic
        y = self.norm(x)
        for number, layer in enumerate(layers, 1):
            y = self.norm(self.conv(*layer)(y))
            y = y if number == len(layers) else nn.relu(y)
        return y
