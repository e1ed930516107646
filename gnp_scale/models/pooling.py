"""Attention pooling: a learned query reads the patches of a vision transformer.

Shapes: B examples, N tokens, D width, H heads, K channels of a head, 2 for key and value.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from flax import nnx
from gnp_kernels.trees import upcast
from jax.nn.initializers import xavier_uniform
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.mesh import BATCH, FSDP, TENSOR, on_mesh
from gnp_scale.models.attention import attend
from gnp_scale.models.layers import SHARDS, Dense, LayerNorm, add_bias, param
from gnp_scale.models.transformer import TOKENS, Mlp, ViTConfig, check_heads, initializer


def repeated(token: nnx.Param, x_BxNxD: jax.Array) -> jax.Array:
    """Learned tokens (M x D) for each example of `x_BxNxD`, in its type (B x M x D)."""
    token_MxD = mesh.gather(token[...], SHARDS)
    shape = (len(x_BxNxD), *token_MxD.shape)
    # Broadcast in float32, then cast to the type of the tokens: its gradient is a float32 sum over examples.
    token_BxMxD = jnp.broadcast_to(upcast(token_MxD)[None], shape, out_sharding=on_mesh(TOKENS))
    return token_BxMxD.astype(x_BxNxD.dtype)


class AttentionPool(nnx.Module):
    """y = Attention(query, x), then y + MLP(LayerNorm(y)): the MAP head of arXiv 2106.04560, as in big_vision.

    Its MLP has a GELU whatever that of the blocks, and no LayerScale.
    """

    def __init__(self, key: jax.Array, size: ViTConfig) -> None:
        latent_key, query_key, key_value_key, out_key, mlp_key = jax.random.split(key, 5)
        width, self.num_heads = size.width, size.num_heads
        heads = size.num_heads, width // size.num_heads
        self.latent = param(latent_key, initializer(size, xavier_uniform()), (1, width), P(None, SHARDS))
        self.query = Dense(
            query_key,
            "bnd,dhk->bnhk",
            (width, *heads),
            init=initializer(size, xavier_uniform(in_axis=0, out_axis=(1, 2))),
            spec=P(FSDP, TENSOR, None),
            out_spec=P(BATCH, None, TENSOR, None),
        )
        self.key_value = Dense(
            key_value_key,
            "bnd,dthk->bnthk",
            (width, 2, *heads),
            init=initializer(size, xavier_uniform(in_axis=0, out_axis=(2, 3), batch_axis=1)),
            spec=P(FSDP, None, TENSOR, None),
            out_spec=P(BATCH, None, None, TENSOR, None),
        )
        self.out_proj = Dense(
            out_key,
            "bnhk,hkd->bnd",
            (*heads, width),
            init=initializer(size, xavier_uniform(in_axis=(0, 1), out_axis=2)),
            spec=P(TENSOR, None, FSDP),
            out_spec=TOKENS,
        )
        self.norm = LayerNorm(key, width)
        self.mlp = Mlp(mlp_key, replace(size, layer_scale=None, sequence_parallel=False), dropout_rate=0.0)

    def __call__(self, x_BxNxD: jax.Array) -> jax.Array:
        """The result for the query (B x 1 x D)."""
        check_heads(self.num_heads)
        parts = jnp.unstack(self.key_value(x_BxNxD, with_bias=False), axis=2)
        assert self.key_value.bias is not None
        key_BxNxHxK, value_BxNxHxK = map(add_bias, parts, jnp.unstack(self.key_value.bias[...]))
        query_Bx1xHxK = self.query(repeated(self.latent, x_BxNxD))
        y_Bx1xD = self.out_proj(attend(query_Bx1xHxK, key_BxNxHxK, value_BxNxHxK, "xla"))
        return y_Bx1xD + self.mlp(self.norm(y_Bx1xD), None)
