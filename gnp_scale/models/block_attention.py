"""Attention of one block of tokens on TPUs, as Pallas kernels: logits and weights stay on the chip, in float32.

Queries, keys and values keep the layout of the projections, N tokens x all heads, so nothing is transposed around the
kernels. A grid step takes some examples and as many heads as fill 128 lanes. The heads share the lanes: a product over
the lanes of one head is a product over all, with zeros in those of the others.

Only queries, keys and values are kept for the backward pass, which computes the weights again.

Shapes: E examples of a grid step, N tokens (Q queries, S keys), L lanes, H heads, K channels of a head.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gnp_scale import mesh

LANES = 128
_MAX_TOKENS = 1024
_TOKENS_OF_STEP = 1024
_VMEM_BYTES = 64 * 2**20
_BYTES_OF_LOGIT = 20
"""Bytes of chip memory for each pair of a query and a key; the compiler needed 18.6 for 836 tokens on v4."""
_NUM_BLOCKS = 2 * 7
"""Blocks of arrays in chip memory: of four operands and three results of the backward pass, each twice."""


def refusal(num_tokens: int, num_heads: int, num_channels: int, dtype: jax.typing.DTypeLike) -> str | None:
    """Why the kernels do not take this size and type on one TPU of the current mesh; None if they do."""
    if LANES % num_channels and num_channels % LANES:
        return f"heads whose channels divide {LANES} or are a multiple of it, and these have {num_channels}"
    if num_heads * num_channels % LANES:
        return f"a multiple of {LANES} channels in all heads of a device, and these are {num_heads * num_channels}"
    if num_tokens > (most := _most_tokens(num_channels, dtype)):
        return f"at most {most} tokens, and these are {num_tokens}"
    return None


def _most_tokens(num_channels: int, dtype: jax.typing.DTypeLike) -> int:
    num_bytes = _NUM_BLOCKS * _TOKENS_OF_STEP * math.lcm(LANES, num_channels) * jnp.dtype(dtype).itemsize
    left = max(0, pltpu.get_tpu_info().vmem_capacity_bytes - num_bytes)
    return min(_MAX_TOKENS, math.isqrt(left // _BYTES_OF_LOGIT))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(
    query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array, interpret: bool = False
) -> jax.Array:
    """softmax(q k^T / sqrt(K)) v, on shards of examples and heads, for sizes without a `refusal`.

    The products take their operands in the type of the query, and add up in float32.
    """
    return _on_shards(_forward_kernel, 1, interpret, query_BxNxHxK, key_BxNxHxK, value_BxNxHxK)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool) -> tuple[jax.Array, Any]:
    return attend(query, key, value, interpret), (query, key, value)


def _backward(interpret: bool, kept: Any, d_out: jax.Array) -> Any:
    return tuple(_on_shards(_backward_kernel, 3, interpret, *kept, d_out))


attend.defvjp(_forward, _backward)


def _on_shards(kernel: Callable[..., None], num_results: int, interpret: bool, *arrays: jax.Array) -> list[jax.Array]:
    call = partial(_call, kernel, num_results, interpret)
    return mesh.on_shards(call, *arrays, out_specs=[mesh.specs(arrays[0])] * num_results)


def _call(kernel: Callable[..., None], num_results: int, interpret: bool, *arrays: jax.Array) -> list[jax.Array]:
    num_examples, num_tokens, num_heads, num_channels = arrays[0].shape
    lanes = math.lcm(LANES, num_channels)
    num_together = math.gcd(num_examples, 2 ** int(math.log2(max(1, _TOKENS_OF_STEP // num_tokens))))
    block = pl.BlockSpec((num_together, num_tokens, lanes), lambda example, head: (example, 0, head))
    flat_BxNxC = jax.ShapeDtypeStruct((num_examples, num_tokens, num_heads * num_channels), arrays[0].dtype)
    results = pl.pallas_call(
        partial(kernel, num_channels),
        grid=(num_examples // num_together, num_heads * num_channels // lanes),
        in_specs=[block] * len(arrays),
        out_specs=[block] * num_results,
        out_shape=[flat_BxNxC] * num_results,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_VMEM_BYTES
        ),
        interpret=interpret,
        name=f"block_attention{kernel.__name__.removesuffix('_kernel')}",
    )(*(x.reshape(flat_BxNxC.shape) for x in arrays))
    return [x.reshape(arrays[0].shape) for x in results]


def _forward_kernel(num_channels: int, query_ref: Any, key_ref: Any, value_ref: Any, out_ref: Any) -> None:
    for example in range(query_ref.shape[0]):
        query_QxL, key_SxL, value_SxL = (ref[example] for ref in (query_ref, key_ref, value_ref))
        out_QxL = jnp.zeros(query_QxL.shape, jnp.float32)
        for is_head_L in _heads(query_QxL.shape[1], num_channels):
            logits_QxS = _product(_only(is_head_L, query_QxL), key_SxL, 1, 1) * num_channels**-0.5
            exponential_QxS = jnp.exp(logits_QxS - jnp.max(logits_QxS, axis=1, keepdims=True))
            inverse_Qx1 = 1 / jnp.sum(exponential_QxS, axis=1, keepdims=True)
            weights_QxS = exponential_QxS.astype(query_QxL.dtype)
            out_QxL += _product(weights_QxS, _only(is_head_L, value_SxL), 1, 0) * inverse_Qx1
        out_ref[example] = out_QxL.astype(out_ref.dtype)


def _backward_kernel(
    num_channels: int, query_ref: Any, key_ref: Any, value_ref: Any, d_out_ref: Any, *d_refs: Any
) -> None:
    """With weights w, d_logits = w (d_w - sum(w d_w)). Weights are keys x queries, so that sums are over rows."""
    for example in range(query_ref.shape[0]):
        query_QxL, key_SxL, value_SxL, d_out_QxL = (ref[example] for ref in (query_ref, key_ref, value_ref, d_out_ref))
        d_query_QxL = d_key_SxL = d_value_SxL = jnp.zeros(query_QxL.shape, jnp.float32)
        for is_head_L in _heads(query_QxL.shape[1], num_channels):
            of_head_QxL, d_of_head_QxL = _only(is_head_L, query_QxL), _only(is_head_L, d_out_QxL)
            logits_SxQ = _product(key_SxL, of_head_QxL, 1, 1) * num_channels**-0.5
            exponential_SxQ = jnp.exp(logits_SxQ - jnp.max(logits_SxQ, axis=0, keepdims=True))
            weights_SxQ = exponential_SxQ * (1 / jnp.sum(exponential_SxQ, axis=0, keepdims=True))
            d_weights_SxQ = _product(value_SxL, d_of_head_QxL, 1, 1)
            total_1xQ = jnp.sum(weights_SxQ * d_weights_SxQ, axis=0, keepdims=True)
            d_logits_SxQ = weights_SxQ * (d_weights_SxQ - total_1xQ) * num_channels**-0.5
            d_logits_SxQ = d_logits_SxQ.astype(query_QxL.dtype)
            d_query_QxL += _product(d_logits_SxQ, _only(is_head_L, key_SxL), 0, 0)
            d_key_SxL += _product(d_logits_SxQ, of_head_QxL, 1, 0)
            d_value_SxL += _product(weights_SxQ.astype(query_QxL.dtype), d_of_head_QxL, 1, 0)
        for ref, gradient in zip(d_refs, (d_query_QxL, d_key_SxL, d_value_SxL), strict=True):
            ref[example] = gradient.astype(ref.dtype)


def _heads(num_lanes: int, num_channels: int) -> list[jax.Array]:
    """For each head, which lanes are its own."""
    head_1xL = jax.lax.broadcasted_iota(jnp.int32, (1, num_lanes), 1) // num_channels
    return [head_1xL == head for head in range(num_lanes // num_channels)]


def _only(is_head_1xL: jax.Array, x_NxL: jax.Array) -> jax.Array:
    return jnp.where(is_head_1xL, x_NxL, 0).astype(x_NxL.dtype)


def _product(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    return jax.lax.dot_general(a, b, (((a_axis,), (b_axis,)), ((), ())), preferred_element_type=jnp.float32)
