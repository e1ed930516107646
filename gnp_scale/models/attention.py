"""Scaled dot-product attention, softmax(q k^T / sqrt(K)) v. Logits are float32 and are not kept.

Shapes: B examples, N tokens, H heads, K channels of a head; N x N: queries x keys.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from gnp_kernels.dispatch import device_kind

from gnp_scale import mesh
from gnp_scale.config import ConfigError
from gnp_scale.config.model import AttentionImplementation
from gnp_scale.mesh import TENSOR, P
from gnp_scale.run.environment import DETERMINISTIC_FLAGS, is_deterministic

# cuDNN has flash attention from this capability on, for heads of at most so many channels on all such GPUs.
_CUDNN_CAPABILITY, _CUDNN_CHANNELS = "8.0", 128

type Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""From queries, keys and values to the result."""


def attend(
    query_BxNxHxK: jax.Array,
    key_BxNxHxK: jax.Array,
    value_BxNxHxK: jax.Array,
    implementation: AttentionImplementation = "auto",
) -> jax.Array:
    """Attention of every token to every token, in the type of the query; heads may be sharded over `tensor`.

    "cudnn" is the flash attention of cuDNN on GPUs, and "pallas" that of `tpu_attention` on TPUs. "auto" chooses them
    where they take the type and the size. "xla" is this file's, for all types and platforms.

    Raises:
        ConfigError: "cudnn" or "pallas" was asked for by name and does not fit.
    """
    if implementation == "auto":
        way = next(way for find in _WAYS.values() if not isinstance(way := find(query_BxNxHxK), str))
    else:
        way = _WAYS[implementation](query_BxNxHxK)
    if isinstance(way, str):
        raise ConfigError(f'model.attention "{implementation}" needs {way}: change that, or use auto or xla')
    return way(query_BxNxHxK, key_BxNxHxK, value_BxNxHxK)


def _cudnn(query_BxNxHxK: jax.Array) -> Attend | str:
    kind = device_kind()
    if not kind.startswith("NVIDIA"):
        return f"an NVIDIA GPU, and this is {kind}"
    # A program may also be compiled for GPUs that are absent. Their capability is unknown.
    capability = jax.devices()[0].compute_capability if jax.default_backend() == "gpu" else _CUDNN_CAPABILITY
    if float(capability) < float(_CUDNN_CAPABILITY):
        return f"compute capability {_CUDNN_CAPABILITY}, and {kind} has {capability}"
    if query_BxNxHxK.dtype != jnp.bfloat16:
        return f"model.dtype bfloat16, and this is {query_BxNxHxK.dtype}"
    if is_deterministic():
        # The second of two equal layers then fails at its first step (openxla/xla pull request 46500).
        return f"XLA_FLAGS without --{' or --'.join(DETERMINISTIC_FLAGS)}"
    num_channels = query_BxNxHxK.shape[-1]
    if num_channels % 8 or num_channels > _CUDNN_CHANNELS:
        return f"heads of at most {_CUDNN_CHANNELS} channels, a multiple of 8, and these have {num_channels}"
    return _by_cudnn


def _by_cudnn(query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array) -> jax.Array:
    flash = partial(jax.nn.dot_product_attention, implementation="cudnn")
    return mesh.on_shards(flash, query_BxNxHxK, key_BxNxHxK, value_BxNxHxK, out_specs=mesh.specs(query_BxNxHxK))


def _pallas(query_BxNxHxK: jax.Array) -> Attend | str:
    kind = device_kind()
    if not kind.startswith("TPU"):
        return f"a TPU, and this is {kind}"
    # Only TPUs need Pallas, whose import takes a quarter of a second.
    from gnp_scale.models import tpu_attention

    _, num_tokens, num_heads, num_channels = query_BxNxHxK.shape
    num_heads //= mesh.current_axis_size(TENSOR)
    return tpu_attention.choose(num_tokens, num_heads, num_channels, query_BxNxHxK.dtype)


@jax.custom_vjp
def by_xla(
    query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """Logits, exponentials and sums are float32. The exponentials, at most 1, are rounded to the type of the query.

    They are rounded once and kept for the backward pass. The K channels of the output, not the N exponentials, are
    divided by their sum. For float32 arrays, only the order of the operations differs from the formula.

    Args:
        query_BxNxHxK: Queries; B may be several dimensions, such as examples and windows.
        key_BxNxHxK: Keys.
        value_BxNxHxK: Values.
        bias: Is added to the logits (B x H x N x N): float32, and of their shape except that dimensions may be 1.
    """
    return _forward(query_BxNxHxK, key_BxNxHxK, value_BxNxHxK, bias)[0]


type _Kept = tuple[tuple[jax.Array, ...], jax.Array | None]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None) -> tuple[jax.Array, _Kept]:
    heads, weights = _specs(query)
    logits = _einsum("...qhk,...shk->...hqs", query, key, weights, jnp.float32) * query.shape[-1] ** -0.5
    if bias is not None:
        logits += bias
    exponential = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    inverse_BxNxHx1 = _swapped(1 / jnp.sum(exponential, axis=-1))
    exponential = exponential.astype(query.dtype)
    out = _einsum("...hqs,...shk->...qhk", exponential, value, heads, jnp.float32) * inverse_BxNxHx1
    out = out.astype(query.dtype)
    return out, ((query, key, value, exponential, inverse_BxNxHx1, out), bias)


def _backward(kept: _Kept, d_out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """With weights w, d_logits = w * (d_w - sum(w * d_w)), where sum(w * d_w) = sum(out * d_out) (arXiv 2205.14135)."""
    (query, key, value, exponential, inverse_BxNxHx1, out), bias = kept
    heads, weights = _specs(query)
    scaled = d_out.astype(jnp.float32) * inverse_BxNxHx1
    product_BxHxNx1 = _swapped(jnp.sum(scaled * out, axis=-1))
    scaled = scaled.astype(query.dtype)
    d_value = _einsum("...hqs,...qhk->...shk", exponential, scaled, heads)
    d_weights = _einsum("...qhk,...shk->...hqs", scaled, value, weights, jnp.float32)
    d_logits = exponential * (d_weights - product_BxHxNx1)
    d_bias = None if bias is None else _sum_to(d_logits, bias.shape)
    d_logits = (d_logits * query.shape[-1] ** -0.5).astype(query.dtype)
    d_query = _einsum("...hqs,...shk->...qhk", d_logits, key, heads)
    d_key = _einsum("...hqs,...qhk->...shk", d_logits, query, heads)
    return d_query, d_key, d_value, d_bias


by_xla.defvjp(_forward, _backward)


_WAYS: dict[str, Callable[[jax.Array], Attend | str]] = {"cudnn": _cudnn, "pallas": _pallas, "xla": lambda _: by_xla}
"""What computes an attention, from its queries; or what it needs that they lack. "auto" takes the first that fits."""


def _specs(query_BxNxHxK: jax.Array) -> tuple[P | None, P | None]:
    """The shardings of the heads, as that of the queries, and of the weights; None without a mesh."""
    spec = jax.typeof(query_BxNxHxK).sharding.spec
    if jax.sharding.get_abstract_mesh().empty:
        return None, None
    *examples, _, heads, _ = spec
    return spec, P(*examples, heads, None, None)


def _einsum(
    formula: str, a: jax.Array, b: jax.Array, spec: P | None, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    return jnp.einsum(formula, a, b, preferred_element_type=dtype, out_sharding=spec)


def _sum_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The sum over the dimensions that have size 1 in `shape`."""
    return jnp.sum(x, axis=[dim for dim, size in enumerate(shape) if size == 1], keepdims=True)


def _swapped(x_BxMxN: jax.Array) -> jax.Array:
    """Swaps heads and tokens, and appends a dimension for channels or keys."""
    return jnp.swapaxes(x_BxMxN, -2, -1)[..., None]
