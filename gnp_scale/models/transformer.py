"""The blocks of vision transformers.

Shapes: B examples, N tokens, D width, F hidden channels of the MLP, H heads, K channels of a head, 3 for query, key and
value. Heads and hidden channels are sharded over `tensor`; elsewhere tokens may be (arXiv 2205.05198, section 4.2.2).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer, normal, xavier_uniform
from jax.sharding import PartitionSpec as P
from jax.typing import ArrayLike

from gnp_scale import mesh
from gnp_scale.config import check
from gnp_scale.config.model import AttentionImplementation
from gnp_scale.mesh import BATCH, FSDP, TENSOR, on_mesh
from gnp_scale.models.attention import attend
from gnp_scale.models.layers import Dense, LayerNorm, RMSNorm, add_bias, drop_path, dropout, fold, gelu
from gnp_scale.models.positions import Grid, rotate
from gnp_scale.models.recompute import ATTENTION

TOKENS, SHARDED_TOKENS = P(BATCH, None, None), P(BATCH, TENSOR, None)


@dataclass(frozen=True)
class ViTConfig:
    """Dimensions and layers of a vision transformer."""

    width: int
    depth: int
    mlp: int
    num_heads: int
    parallel: bool = False
    """Blocks of ViT-22B: attention and MLP in parallel, normalised queries and keys, norms without mean and bias."""
    deit: bool = False
    """As DeiT (arXiv 2012.12877): with the exact GELU, not the approximation of big_vision, and as `initializer`."""
    layer_scale: float | None = None
    """Initial factor of the results of attention and MLP (LayerScale, arXiv 2103.17239); None for no factors."""
    attention: AttentionImplementation = "auto"
    swiglu: bool = False
    """SiLU(x V) * x W in the MLP instead of a GELU."""
    grid: Grid | None = None
    """Tokens, for attention that rotates queries and keys by their places; None for none."""
    sequence_parallel: bool = False
    """Whether the inputs and results of attention and MLP have their tokens sharded over `tensor`."""

    @property
    def token_spec(self) -> P:
        """The sharding of these inputs and results."""
        return SHARDED_TOKENS if self.sequence_parallel else TOKENS


def initializer(size: ViTConfig, other: Initializer) -> Initializer:
    """Normal of standard deviation 0.02 in DeiT, elsewhere `other`.

    The authors of DeiT truncate at -2 and 2, which are 100 standard deviations.
    """
    return normal(0.02) if size.deit else other


def cut_patches(image_BxHxWxC: jax.Array, size: int) -> jax.Array:
    """The patches of an image, as B x rows x `size` x columns x `size` x C."""
    num_examples, height, width, channels = image_BxHxWxC.shape
    shape = (num_examples, height // size, size, width // size, size, channels)
    return jnp.reshape(image_BxHxWxC, shape, out_sharding=on_mesh(mesh.batch_spec(len(shape))))


class Block(nnx.Module):
    """x + Attention(LayerNorm(x)), then x + MLP(LayerNorm(x)); both may have a learned factor for each channel."""

    def __init__(self, key: jax.Array, size: ViTConfig, dropout_rate: float) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.dropout_rate = dropout_rate
        self.norm_attention = LayerNorm(key, size.width)
        self.attention = self.make_attention(attention_key, size)
        self.norm_mlp = LayerNorm(key, size.width)
        self.mlp = make_mlp(mlp_key, size, dropout_rate)

    def make_attention(self, key: jax.Array, size: ViTConfig) -> "Attention":
        """The attention over the tokens."""
        return Attention(key, size)

    def __call__(
        self, x_BxNxD: jax.Array, number: ArrayLike, drop_rate: jax.Array | None, key_B: jax.Array | None
    ) -> jax.Array:
        key_B = fold(key_B, number)
        y_BxNxD = dropout(self.attention(self.norm_attention(x_BxNxD)), self.dropout_rate, fold(key_B, 0))
        x_BxNxD += drop_path(y_BxNxD, drop_rate, fold(key_B, 1))
        y_BxNxD = dropout(self.mlp(self.norm_mlp(x_BxNxD), fold(key_B, 2)), self.dropout_rate, fold(key_B, 3))
        return x_BxNxD + drop_path(y_BxNxD, drop_rate, fold(key_B, 4))


class ParallelBlock(nnx.Module):
    """x + Attention(y) + MLP(y) with y = RMSNorm(x) (arXiv 2302.05442, section 2).

    The output of attention has no bias, because only its sum with the bias of the MLP's output would matter.
    """

    def __init__(self, key: jax.Array, size: ViTConfig, dropout_rate: float) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.dropout_rate = dropout_rate
        self.norm = RMSNorm(key, size.width)
        self.attention = Attention(attention_key, size)
        self.mlp = make_mlp(mlp_key, size, dropout_rate)

    def __call__(
        self, x_BxNxD: jax.Array, number: ArrayLike, drop_rate: jax.Array | None, key_B: jax.Array | None
    ) -> jax.Array:
        key_B = fold(key_B, number)
        y_BxNxD = self.norm(x_BxNxD)
        y_BxNxD = self.attention(y_BxNxD) + self.mlp(y_BxNxD, fold(key_B, 0))
        y_BxNxD = dropout(y_BxNxD, self.dropout_rate, fold(key_B, 1))
        return x_BxNxD + drop_path(y_BxNxD, drop_rate, fold(key_B, 2))


class Attention(nnx.Module):
    """Multi-head self-attention; a parallel block has no biases here, and normalises queries and keys."""

    def __init__(self, key: jax.Array, size: ViTConfig) -> None:
        check_heads(size.num_heads)
        width, num_heads = size.width, size.num_heads
        self.num_heads, self.implementation, self.grid = num_heads, size.attention, size.grid
        in_key, out_key = jax.random.split(key)
        self.in_proj = Dense(
            in_key,
            "bnd,dthk->bnthk",
            (width, 3, num_heads, width // num_heads),
            init=initializer(size, xavier_uniform(in_axis=0, out_axis=(2, 3), batch_axis=1)),
            spec=P(FSDP, None, TENSOR, None),
            out_spec=P(BATCH, None, None, TENSOR, None),
            gathers_tokens=True,
            use_bias=not size.parallel,
        )
        self.norm_query = RMSNorm(key, width // num_heads) if size.parallel else None
        self.norm_key = RMSNorm(key, width // num_heads) if size.parallel else None
        self.out_proj = Dense(
            out_key,
            "bnhk,hkd->bnd",
            (num_heads, width // num_heads, width),
            init=initializer(size, xavier_uniform(in_axis=(0, 1), out_axis=2)),
            spec=P(TENSOR, None, FSDP),
            out_spec=size.token_spec,
            scatters_tokens=size.sequence_parallel,
            use_bias=not size.parallel,
            initial_scale=size.layer_scale,
        )

    def __call__(self, x_BxNxD: jax.Array) -> jax.Array:
        check_heads(self.num_heads)  # Again, because the mesh may differ from the one of the initialisation.
        # Each of the three adds its own bias, so XLA computes three arrays instead of one to be split.
        parts = jnp.unstack(self.in_proj(x_BxNxD, with_bias=False), axis=2)
        if self.in_proj.bias is not None:
            parts = map(add_bias, parts, jnp.unstack(self.in_proj.bias[...]))
        query_BxNxHxK, key_BxNxHxK, value_BxNxHxK = parts
        if self.norm_query is not None and self.norm_key is not None:
            query_BxNxHxK, key_BxNxHxK = self.norm_query(query_BxNxHxK), self.norm_key(key_BxNxHxK)
        if self.grid is not None:
            query_BxNxHxK, key_BxNxHxK = rotate(query_BxNxHxK, self.grid), rotate(key_BxNxHxK, self.grid)
        out_BxNxHxK = self.attend(query_BxNxHxK, key_BxNxHxK, value_BxNxHxK)
        return self.out_proj(checkpoint_name(out_BxNxHxK, ATTENTION))

    def attend(self, query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array) -> jax.Array:
        """For each query the weighted average of the values (B x N x H x K)."""
        return attend(query_BxNxHxK, key_BxNxHxK, value_BxNxHxK, self.implementation)


class Mlp(nnx.Module):
    """Two dense layers with a GELU between them."""

    def __init__(self, key: jax.Array, size: ViTConfig, dropout_rate: float) -> None:
        in_key, out_key = jax.random.split(key)
        self.exact_gelu, self.dropout_rate = size.deit, dropout_rate
        self.in_proj = _to_hidden(in_key, size)
        self.out_proj = _from_hidden(out_key, size)

    def __call__(self, x_BxNxD: jax.Array, key_B: jax.Array | None) -> jax.Array:
        x_BxNxF = dropout(gelu(self.in_proj(x_BxNxD), approximate=not self.exact_gelu), self.dropout_rate, key_B)
        return self.out_proj(x_BxNxF)


class SwiGlu(nnx.Module):
    """SiLU(gate(x)) * value(x), then a dense layer (arXiv 2002.05202, section 2; with biases, as in DINOv3)."""

    def __init__(self, key: jax.Array, size: ViTConfig, dropout_rate: float) -> None:
        gate_key, value_key, out_key = jax.random.split(key, 3)
        self.dropout_rate = dropout_rate
        self.gate, self.value = _to_hidden(gate_key, size), _to_hidden(value_key, size)
        self.out_proj = _from_hidden(out_key, size)

    def __call__(self, x_BxNxD: jax.Array, key_B: jax.Array | None) -> jax.Array:
        x_BxNxF = jax.nn.silu(self.gate(x_BxNxD)) * self.value(x_BxNxD)
        return self.out_proj(dropout(x_BxNxF, self.dropout_rate, key_B))


def make_mlp(key: jax.Array, size: ViTConfig, dropout_rate: float) -> Mlp | SwiGlu:
    """The MLP of a block."""
    return (SwiGlu if size.swiglu else Mlp)(key, size, dropout_rate)


def _to_hidden(key: jax.Array, size: ViTConfig) -> Dense:
    return Dense(
        key,
        "bnd,df->bnf",
        (size.width, size.mlp),
        init=initializer(size, xavier_uniform()),
        spec=P(FSDP, TENSOR),
        out_spec=P(BATCH, None, TENSOR),
        gathers_tokens=True,
    )


def _from_hidden(key: jax.Array, size: ViTConfig) -> Dense:
    return Dense(
        key,
        "bnf,fd->bnd",
        (size.mlp, size.width),
        init=initializer(size, xavier_uniform()),
        spec=P(TENSOR, FSDP),
        out_spec=size.token_spec,
        scatters_tokens=size.sequence_parallel,
        initial_scale=size.layer_scale,
    )


def check_heads(num_heads: int) -> None:
    """Raises ConfigError unless the tensor axis of the current mesh divides the number of heads."""
    num_shards = mesh.current_axis_size(TENSOR)
    check(
        num_heads % num_shards == 0,
        f"{num_heads} attention heads do not divide over the tensor axis of {num_shards}: "
        "change model.num_heads or mesh.tensor",
    )
