"""ConvNeXt (arXiv 2201.03545).

Shapes: B examples, H height, W width, C channels, F hidden channels of a block.
"""

from dataclasses import dataclass

import jax
from flax import nnx
from jax.nn.initializers import normal
from jax.sharding import PartitionSpec as P

from gnp_scale.config import ModelConfig, check
from gnp_scale.mesh import AXES
from gnp_scale.models import recompute
from gnp_scale.models.conv_layers import Conv, Head, average, shard_examples, shard_examples_over_all
from gnp_scale.models.family import Family
from gnp_scale.models.layers import SHARDS, Dense, LayerNorm, drop_path, fold, gelu, rising_rates
from gnp_scale.models.layouts import with_stored_gradient
from gnp_scale.models.torch_weights import leaf_name


@dataclass(frozen=True)
class ConvNeXtConfig:
    """Number of blocks, and of their channels, in each stage."""

    depths: tuple[int, ...]
    widths: tuple[int, ...]


# Section 3 of arXiv 2201.03545.
SIZES = {
    "convnext_t": ConvNeXtConfig((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_s": ConvNeXtConfig((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_b": ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024)),
    "convnext_l": ConvNeXtConfig((3, 3, 27, 3), (192, 384, 768, 1536)),
    "convnext_xl": ConvNeXtConfig((3, 3, 27, 3), (256, 512, 1024, 2048)),
}
LAYER_SCALE = 1e-6
"""Initial factor of each channel of a block's result."""
STEM = 4
"""Height and width of the patches of the first layer."""
INIT = normal(0.02)
"""The authors truncate it at -2 and 2, which are 100 standard deviations."""


def check_shapes(config: ModelConfig, image_shape: tuple[int, int, int]) -> None:
    """Raises ConfigError if nothing of the image remains in the last stage."""
    height, width, _ = image_shape
    least = STEM * 2 ** (len(SIZES[config.name].depths) - 1)
    check(
        min(height, width) >= least,
        f"{config.name} makes one pixel of {least}x{least}: images of {height}x{width} are too small, "
        "choose another network",
    )


class ConvNeXtBlock(nnx.Module):
    """x + scale * MLP(LayerNorm(conv(x))), with a depthwise 7x7 convolution, and an exact GELU in the MLP."""

    def __init__(self, key: jax.Array, width: int) -> None:
        conv_key, in_key, out_key = jax.random.split(key, 3)
        self.conv = Conv(conv_key, 7, width, width, num_groups=width, init=INIT, use_bias=True)
        self.norm = LayerNorm(key, width)
        self.in_proj = _pointwise(in_key, "bhwc,cf->bhwf", width, 4 * width)
        self.out_proj = _pointwise(out_key, "bhwf,fc->bhwc", 4 * width, width, initial_scale=LAYER_SCALE)

    def __call__(self, x_BxHxWxC: jax.Array, drop_rate: jax.Array | None, key_B: jax.Array | None) -> jax.Array:
        y_BxHxWxF = gelu(self.in_proj(self.norm(self.conv(x_BxHxWxC))), approximate=False)
        return x_BxHxWxC + drop_path(self.out_proj(y_BxHxWxF), drop_rate, key_B)


def _pointwise(key: jax.Array, formula: str, num_in: int, num_out: int, *, initial_scale: float | None = None) -> Dense:
    return Dense(
        key,
        formula,
        (num_in, num_out),
        init=INIT,
        spec=P(None, SHARDS),
        out_spec=P(AXES, None, None, None),
        gathered=SHARDS,
        initial_scale=initial_scale,
    )


class Downsampling(nnx.Module):
    """A 2x2 convolution with stride 2 of LayerNorm(x)."""

    def __init__(self, key: jax.Array, num_in: int, num_out: int) -> None:
        self.norm = LayerNorm(key, num_in)
        self.conv = Conv(key, 2, num_in, num_out, 2, padding=0, init=INIT, use_bias=True)

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return self.conv(self.norm(x_BxHxWxC))


class ConvNeXt(nnx.Module):
    """A convolution over patches of 4x4 pixels, four stages of blocks, LayerNorm of their average, and the head.

    Each stage after the first halves the image. All kernels start as in the authors' code
    (github.com/facebookresearch/ConvNeXt), normal with standard deviation 0.02, and biases at 0.
    """

    def __init__(
        self, key: jax.Array, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        stem_key, between_key, stages_key, head_key = jax.random.split(key, 4)
        size = SIZES[config.name]
        self.config, self.num_blocks = config, sum(size.depths)
        self.conv = Conv(stem_key, STEM, image_shape[-1], size.widths[0], STEM, padding=0, init=INIT, use_bias=True)
        self.norm = LayerNorm(key, size.widths[0])
        self.downsamplings = nnx.Dict(
            {
                str(stage): Downsampling(stage_key, *size.widths[stage - 1 : stage + 1])
                for stage, stage_key in enumerate(jax.random.split(between_key, len(size.widths) - 1), 1)
            }
        )
        stages = {}
        for stage, stage_key in enumerate(jax.random.split(stages_key, len(size.depths))):
            block_keys = jax.random.split(stage_key, size.depths[stage])
            blocks = {
                f"{n:02d}": ConvNeXtBlock(block_key, size.widths[stage]) for n, block_key in enumerate(block_keys)
            }
            stages[str(stage)] = nnx.Dict(blocks)
        self.stages = nnx.Dict(stages)
        self.norm_head = LayerNorm(key, size.widths[-1])
        self.head = Head(head_key, size.widths[-1], num_classes, init=INIT)

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        key_B = shard_examples(key_B, AXES) if train and key_B is not None else None
        drop_rates, number = rising_rates(self.config.drop_path, self.num_blocks), 0
        x_BxHxWxC = self.norm(self.conv(shard_examples_over_all(image_BxHxWxC.astype(self.config.dtype))))
        for stage, blocks in self.stages.items():
            if stage in self.downsamplings:
                x_BxHxWxC = self.downsamplings[stage](x_BxHxWxC)
            for block in blocks.values():
                x_BxHxWxC, key = with_stored_gradient(x_BxHxWxC), fold(key_B, number)
                x_BxHxWxC = recompute.call(block, x_BxHxWxC, drop_rates[number], key, remat=self.config.remat)
                number += 1
        return self.head.classify(self.norm_head(average(x_BxHxWxC)))


def torch_name(path: str) -> str:
    """The name of a parameter in timm."""
    *modules, leaf = path.split("/")
    match modules:
        case ["downsamplings", stage, name]:
            place = f"stages.{stage}.downsample.{['norm', 'conv'].index(name)}"
        case ["stages", stage, number, "out_proj"] if path.endswith("/scale"):
            return f"stages.{stage}.blocks.{int(number)}.gamma"
        case ["stages", stage, number, name]:
            names = {"conv": "conv_dw", "norm": "norm", "in_proj": "mlp.fc1", "out_proj": "mlp.fc2"}
            place = f"stages.{stage}.blocks.{int(number)}.{names[name]}"
        case _:
            place = {"conv": "stem.0", "norm": "stem.1", "norm_head": "head.norm", "head": "head.fc"}[modules[0]]
    return f"{place}.{leaf_name(leaf)}"


FAMILY = Family(SIZES, ConvNeXt, ("drop_path", "remat"), check_shapes)
