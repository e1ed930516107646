"""MLP-Mixer (arXiv 2105.01601).

Shapes: B examples, H height, W width and C channels of an image, N tokens, D width, F hidden channels of an MLP.
Hidden channels are sharded over `tensor`; tokens are not sharded.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import lecun_normal, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale.config import ModelConfig
from gnp_scale.mesh import BATCH, FSDP, TENSOR
from gnp_scale.models import recompute
from gnp_scale.models.family import Family, check_patches
from gnp_scale.models.layers import SHARDS, Dense, LayerNorm, drop_path, fold, gelu, rising_rates
from gnp_scale.models.layouts import with_stored_gradient
from gnp_scale.models.torch_weights import leaf_name
from gnp_scale.models.transformer import TOKENS, cut_patches


@dataclass(frozen=True)
class MixerConfig:
    """Dimensions of a Mixer."""

    width: int
    depth: int
    mlp_tokens: int
    mlp_channels: int


# Table 1 of arXiv 2105.01601.
SIZES = {
    "mixer_s": MixerConfig(512, 8, 256, 2048),
    "mixer_b": MixerConfig(768, 12, 384, 3072),
    "mixer_l": MixerConfig(1024, 24, 512, 4096),
}


class MixerMlp(nnx.Module):
    """Two dense layers with a GELU (tanh approximation, as in the authors' code) between them.

    Args:
        key: Random key of the kernels.
        in_formula: That of the first layer; its hidden channels come last.
        out_formula: That of the second layer.
        num_in: Size of the dimension that is mixed.
        num_hidden: Number of hidden channels.
    """

    def __init__(self, key: jax.Array, in_formula: str, out_formula: str, num_in: int, num_hidden: int) -> None:
        in_key, out_key = jax.random.split(key)
        self.in_proj = Dense(
            in_key,
            in_formula,
            (num_in, num_hidden),
            init=lecun_normal(),
            spec=P(FSDP, TENSOR),
            out_spec=P(BATCH, None, TENSOR),
        )
        self.out_proj = Dense(
            out_key, out_formula, (num_hidden, num_in), init=lecun_normal(), spec=P(TENSOR, FSDP), out_spec=TOKENS
        )

    def __call__(self, x_BxNxD: jax.Array) -> jax.Array:
        return self.out_proj(gelu(self.in_proj(x_BxNxD), approximate=True))


class MixerBlock(nnx.Module):
    """x + MLP(LayerNorm(x)) along the tokens, then x + MLP(LayerNorm(x)) along the channels."""

    def __init__(self, key: jax.Array, size: MixerConfig, num_tokens: int) -> None:
        tokens_key, channels_key = jax.random.split(key)
        self.norm_tokens = LayerNorm(key, size.width)
        # The token of a result comes last, so that it ends with a dimension of the kernel.
        self.mlp_tokens = MixerMlp(tokens_key, "bnd,nf->bdf", "bdf,fn->bdn", num_tokens, size.mlp_tokens)
        self.norm_channels = LayerNorm(key, size.width)
        self.mlp_channels = MixerMlp(channels_key, "bnd,df->bnf", "bnf,fd->bnd", size.width, size.mlp_channels)

    def __call__(self, x_BxNxD: jax.Array, drop_rate: jax.Array | None, key_B: jax.Array | None) -> jax.Array:
        y_BxDxN = self.mlp_tokens(self.norm_tokens(x_BxNxD))
        x_BxNxD += drop_path(jnp.swapaxes(y_BxDxN, 1, 2), drop_rate, fold(key_B, 0))
        return x_BxNxD + drop_path(self.mlp_channels(self.norm_channels(x_BxNxD)), drop_rate, fold(key_B, 1))


class MlpMixer(nnx.Module):
    """Blocks over image patches, then the average over tokens.

    Parameters are initialised as in the authors' code (github.com/google-research/vision_transformer): kernels
    LeCun-normal, head and biases zero.
    """

    def __init__(
        self, key: jax.Array, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        size, patch = SIZES[config.name], config.patch_size
        embed_key, blocks_key = jax.random.split(key)
        num_tokens = (image_shape[0] // patch) * (image_shape[1] // patch)
        self.config, self.size = config, size
        self.embed = Dense(
            embed_key,
            "bhpwqc,pqcd->bhwd",
            (patch, patch, image_shape[2], size.width),
            init=lecun_normal(in_axis=(0, 1, 2), out_axis=3),
            spec=P(None, None, None, SHARDS),
            out_spec=P(BATCH, None, None, None),
            gathered=SHARDS,
        )
        self.blocks = nnx.Dict(
            {
                f"{number:02d}": MixerBlock(block_key, size, num_tokens)
                for number, block_key in enumerate(jax.random.split(blocks_key, size.depth))
            }
        )
        self.norm = LayerNorm(key, size.width)
        self.head = Dense(
            key,
            "bd,dc->bc",
            (size.width, num_classes),
            init=zeros,
            spec=P(SHARDS, None),
            out_spec=P(BATCH, None),
            gathered=SHARDS,
        )

    def __call__(self, image_BxHxWxC: jax.Array, *, train: bool, key_B: jax.Array | None = None) -> jax.Array:
        key_B = key_B if train else None
        drop_rates = rising_rates(self.config.drop_path, self.size.depth)
        patches = cut_patches(image_BxHxWxC.astype(self.config.dtype), self.config.patch_size)
        x_BxNxD = self.embed(patches).reshape(len(patches), -1, self.size.width)
        for number, block in enumerate(self.blocks.values()):
            x_BxNxD, key = with_stored_gradient(x_BxNxD), fold(key_B, number)
            x_BxNxD = recompute.call(block, x_BxNxD, drop_rates[number], key, remat=self.config.remat)
        x_BxD = jnp.mean(self.norm(x_BxNxD).astype(jnp.float32), axis=1)
        return self.head(x_BxD)


def torch_name(path: str) -> str:
    """The name of a parameter in timm."""
    *modules, leaf = path.split("/")
    names = {
        "embed": "stem.proj",
        "norm_tokens": "norm1",
        "norm_channels": "norm2",
        "in_proj": "fc1",
        "out_proj": "fc2",
    }
    modules = [names.get(name, str(int(name)) if name.isdigit() else name) for name in modules]
    return ".".join((*modules, leaf_name(leaf)))


FAMILY = Family(SIZES, MlpMixer, ("patch_size", "drop_path", "remat"), check_patches)
