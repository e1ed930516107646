"""VGG networks (arXiv 1409.1556), with and without batch normalisation.

Shapes: B examples, H height, W width, C channels, F channels of a dense layer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.nn.initializers import normal
from jax.sharding import PartitionSpec as P

from gnp_scale.config import ModelConfig, check
from gnp_scale.mesh import AXES, on_mesh
from gnp_scale.models import recompute
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import (
    Conv,
    Head,
    average,
    max_pool,
    shard_examples,
    shard_examples_over_all,
)
from gnp_scale.models.family import Family
from gnp_scale.models.layers import SHARDS, Dense, dropout, fold
from gnp_scale.models.torch_weights import leaf_name

# Configurations D and E of table 1 of arXiv 1409.1556.
LAYOUTS = {
    "vgg16": ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)),
    "vgg19": ((2, 64), (2, 128), (4, 256), (4, 512), (4, 512)),
}
"""Number of convolutions, and of their channels, in each stage."""
_SUFFIX = "_bn"
HIDDEN = 4096
"""Channels of the first two dense layers."""
WINDOW = 7
"""Height and width that the first dense layer sees."""


def layout_of(name: str) -> tuple[tuple[int, int], ...]:
    """The row of `LAYOUTS` for a network with or without batch normalisation."""
    return LAYOUTS[name.removesuffix(_SUFFIX)]


def check_shapes(config: ModelConfig, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError if pooling leaves nothing of the image."""
    height, width, _ = image_shape
    least = 2 ** len(layout_of(config.name))
    check(
        min(height, width) >= least,
        f"{config.name} halves an image until one pixel of {least}x{least} remains: images of {height}x{width} are "
        "too small, choose another network",
    )


class ConvLayer(nnx.Module):
    """relu(norm(conv(x))), or relu(conv(x)); the convolution has a bias in both."""

    def __init__(self, key: jax.Array, num_in: int, num_out: int, bn_group_size: int | None) -> None:
        self.conv = Conv(key, 3, num_in, num_out, use_bias=True)
        self.norm = None if bn_group_size is None else BatchNorm(key, num_out, bn_group_size)

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        y = self.conv(x_BxHxWxC)
        return jax.nn.relu(y if self.norm is None else self.norm(y, train))


class WindowDense(Conv):
    """A dense layer on all windows of 7x7, as in the paper's section 3.2; 224x224 pixels have one window."""

    def convolve(self, x_BxHxWxC: jax.Array, kernel: jax.Array) -> jax.Array:
        """A matrix product if there is one window, because it is faster than a convolution with one output."""
        if x_BxHxWxC.shape[1:3] != kernel.shape[:2]:
            return super().convolve(x_BxHxWxC, kernel)
        return jnp.einsum("bhwc,hwcf->bf", x_BxHxWxC, kernel, out_sharding=on_mesh(P(AXES, None)))[:, None, None]


class VGG(nnx.Module):
    """Stages of 3x3 convolutions with max-pooling after each, and three dense layers with dropout between them.

    Features of fewer than 7x7 are first averaged over 7x7 overlapping bins, as in PyTorch. With more, the dense layers
    act on all windows, and the last one on their average. Initial weights are those of torchvision: `HE_NORMAL`, and
    normal with standard deviation 0.01 for dense layers. The published rate of dropout is 0.5.
    """

    def __init__(
        self,
        key: jax.Array,
        config: ModelConfig,
        image_shape: tuple[int, int, int],
        num_classes: int,
        bn_group_size: int | None = None,
    ) -> None:
        stages_key, key_1, key_2, head_key = jax.random.split(key, 4)
        self.dtype, self.dropout_rate, self.remat = config.dtype, config.dropout, config.remat
        layout = layout_of(config.name)
        num_out, stages = image_shape[-1], {}
        for stage, stage_key in enumerate(jax.random.split(stages_key, len(layout))):
            layers, (num_layers, width) = {}, layout[stage]
            for number, layer_key in enumerate(jax.random.split(stage_key, num_layers)):
                layers[str(number)] = ConvLayer(layer_key, num_out, width, bn_group_size)
                num_out = width
            stages[str(stage)] = nnx.Dict(layers)
        self.stages = nnx.Dict(stages)
        self.dense_1 = WindowDense(key_1, WINDOW, num_out, HIDDEN, padding=0, init=normal(0.01), use_bias=True)
        self.dense_2 = Dense(
            key_2,
            "bhwc,cf->bhwf",
            (HIDDEN, HIDDEN),
            init=normal(0.01),
            spec=P(None, SHARDS),
            out_spec=P(AXES, None, None, None),
            gathered=SHARDS,
        )
        self.head = Head(head_key, HIDDEN, num_classes)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        key_B = shard_examples(key_B, AXES) if train and key_B is not None else None
        x_BxHxWxC = shard_examples_over_all(image_BxHxWxC.astype(self.dtype))
        for stage in self.stages.values():
            for layer in stage.values():
                x_BxHxWxC = recompute.call(layer, x_BxHxWxC, train, remat=self.remat)
            x_BxHxWxC = max_pool(x_BxHxWxC, 2)
        x_BxHxWxF = jax.nn.relu(self.dense_1(_at_least_a_window(x_BxHxWxC)))
        x_BxHxWxF = dropout(x_BxHxWxF, self.dropout_rate, fold(key_B, 0))
        x_BxF = average(jax.nn.relu(self.dense_2(x_BxHxWxF)))
        return self.head.classify(dropout(x_BxF, self.dropout_rate, fold(key_B, 1)))


def _at_least_a_window(x_BxHxWxC: jax.Array) -> jax.Array:
    """Averages over bins where height or width are smaller than a window (PyTorch's `adaptive_avg_pool2d`)."""
    height, width = x_BxHxWxC.shape[1:3]
    if height >= WINDOW and width >= WINDOW:
        return x_BxHxWxC
    rows, columns = (jnp.asarray(_bins(size), x_BxHxWxC.dtype) for size in (height, width))
    return jnp.einsum("bhwc,ih,jw->bijc", x_BxHxWxC, rows, columns, out_sharding=on_mesh(P(AXES, None, None, None)))


def _bins(size: int) -> np.ndarray:
    """The weights of `size` pixels in each bin: bin i of n is the average from floor(i size / n), up to its end."""
    num_bins = max(size, WINDOW)
    place, number = np.arange(size), np.arange(num_bins)[:, None]
    is_inside = (place >= number * size // num_bins) & (place * num_bins < (number + 1) * size)
    return is_inside / is_inside.sum(axis=1, keepdims=True)


def torch_name(name: str, path: str) -> str:
    """The name in timm of a parameter or statistic of network `name`."""
    *modules, leaf = path.split("/")
    leaf = leaf_name(leaf)
    dense = {"dense_1": "pre_logits.fc1", "dense_2": "pre_logits.fc2", "head": "head.fc"}
    if modules[0] in dense:
        return f"{dense[modules[0]]}.{leaf}"
    stage, number = int(modules[1]), int(modules[2])
    num_before = number + sum(num_layers for num_layers, _ in layout_of(name)[:stage])
    # Each layer is a convolution, perhaps a norm, and a ReLU; each stage ends with the pooling.
    has_norm = name.endswith(_SUFFIX)
    return f"features.{(2 + has_norm) * num_before + stage + (modules[3] == 'norm')}.{leaf}"


FAMILY = Family(LAYOUTS, VGG, ("dropout", "remat"), check_shapes)
BN_FAMILY = Family([name + _SUFFIX for name in LAYOUTS], VGG, ("dropout", "num_bn_groups", "remat"), check_shapes)
