"""Attention by Pallas kernels on TPUs: those of `block_attention`, or for many tokens JAX's splash attention.

`python -m benchmarks.attention_tpu` compares their estimated cycles with XLA's.

Shapes: B examples, N tokens, H heads, K channels of a head.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

from gnp_scale import mesh
from gnp_scale.models import block_attention

FEWEST_TOKENS_OF_SPLASH = 1024
"""With fewer, XLA takes fewer cycles."""
_BLOCKS = (1024, 512)
"""Tokens of a block of splash attention; the compiler refuses 2,048."""
_SMALL_VMEM_BYTES, _BYTES_OF_TOKEN = 16 * 2**20, 256
"""With so little chip memory, as on v4, the larger block fits if a token has no more bytes in a head than these."""


def choose(
    num_tokens: int, num_heads: int, num_channels: int, dtype: jax.typing.DTypeLike
) -> Callable[..., jax.Array] | str:
    """The one that computes softmax(q k^T / sqrt(K)) v on shards of examples and heads, or why neither does.

    Args:
        num_tokens: Tokens of an example.
        num_heads: Heads on one TPU of the current mesh.
        num_channels: Channels of a head.
        dtype: Type of the queries.
    """
    reason = block_attention.refusal(num_tokens, num_heads, num_channels, dtype)
    # The gradient of splash attention has another type than JAX demands in a `shard_map` of perturbation groups.
    fits_splash = num_tokens >= FEWEST_TOKENS_OF_SPLASH and not jax.sharding.get_abstract_mesh().manual_axes
    if reason is not None and not fits_splash:
        return reason
    return partial(attend_on_tpu, attend=block_attention.attend if reason is None else splash_on_shards)


@partial(jax.jit, static_argnames="attend")
def attend_on_tpu(
    query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array, *, attend: Callable[..., jax.Array]
) -> jax.Array:
    """`attend`, traced once for all layers; `monitoring/flops.py` knows it by this name."""
    return attend(query_BxNxHxK, key_BxNxHxK, value_BxNxHxK)


def splash_on_shards(query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array) -> jax.Array:
    """`splash` on shards of examples and heads, in the blocks that one TPU of the current mesh has room for."""
    num_lanes = block_attention.LANES * math.ceil(query_BxNxHxK.shape[-1] / block_attention.LANES)
    is_small = pltpu.get_tpu_info().vmem_capacity_bytes <= _SMALL_VMEM_BYTES
    is_wide = num_lanes * query_BxNxHxK.dtype.itemsize > _BYTES_OF_TOKEN
    attend = partial(splash, blocks=_BLOCKS[1:] if is_small and is_wide else _BLOCKS)
    out_specs = mesh.specs(query_BxNxHxK)
    return mesh.on_shards(attend, query_BxNxHxK, key_BxNxHxK, value_BxNxHxK, out_specs=out_specs)


def splash(
    query_BxNxHxK: jax.Array,
    key_BxNxHxK: jax.Array,
    value_BxNxHxK: jax.Array,
    *,
    blocks: Sequence[int] = _BLOCKS,
    interpret: bool = False,
) -> jax.Array:
    """Splash attention of every token to every token. Tokens that fill the last block are a segment of their own."""
    _, num_tokens, num_heads, num_channels = query_BxNxHxK.shape
    block = min(blocks, key=lambda block: (-num_tokens % block, -block))
    num_added = -num_tokens % block
    mask = masks.MultiHeadMask([masks.FullMask((num_tokens + num_added,) * 2)] * num_heads)
    # In this order: queries, keys, and keys of a product, of the forward pass; the same for the gradients of keys and
    # values; queries and keys for that of the queries.
    sizes = kernels.BlockSizes(block, block, block, block, block, block, block, block)
    kernel = kernels.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)
    segment_N = jnp.asarray(np.arange(num_tokens + num_added) >= num_tokens, jnp.int32)
    segments = kernels.SegmentIds(segment_N, segment_N) if num_added else None

    def heads_first(x_BxNxHxK: jax.Array) -> jax.Array:
        return jnp.pad(jnp.swapaxes(x_BxNxHxK, 1, 2), ((0, 0), (0, 0), (0, num_added), (0, 0)))

    arrays = (query_BxNxHxK * num_channels**-0.5, key_BxNxHxK, value_BxNxHxK)
    out_BxHxNxK: Any = jax.vmap(lambda *one: kernel(*one, segment_ids=segments))(*map(heads_first, arrays))
    return jnp.swapaxes(out_BxHxNxK, 1, 2)[:, :num_tokens]
