"""The layers that all networks share.

Parameters are float32 and created in shards. A kernel is stored in shards over `fsdp` and `tensor`, and gathered for
use. Vectors (biases, scales) are small and replicated, unless the layer computes in shards along their dimension.

Shapes: B examples; `x_Bx` has any dimensions after the examples.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from gnp_kernels.dispatch import platform
from gnp_kernels.trees import path_name, upcast
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer, constant, ones, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.mesh import FSDP, TENSOR, on_mesh
from gnp_scale.models.layouts import with_fast_gradient
from gnp_scale.models.recompute import SCATTERED

SHARDS = (FSDP, TENSOR)
"""Axes that store the parameters of a layer that does not shard its channels."""


def param(key: jax.Array, init: Initializer, shape: tuple[int, ...], spec: P) -> nnx.Param:
    """A float32 parameter drawn by `init`; each device draws its own shard."""
    return nnx.Param(init(key, shape, jnp.float32, out_sharding=mesh.divisible_spec(spec, shape)))


def with_gathered_kernel(
    fn: Callable[[jax.Array, jax.Array], jax.Array],
    kernel: jax.Array,
    axes: tuple[str, ...],
    summed: tuple[str, ...] = (),
    *,
    has_shards_of_tokens: bool = False,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`fn(x, kernel)` that first casts the kernel to the type of `x` and then gathers it over `axes` (`mesh.gather`).

    With `has_shards_of_tokens`, `x` is gathered over `tensor` too, and its gradient is a sum over that. What is sharded
    is gathered again in the backward pass: to keep it from the forward pass would undo the sharding.
    """

    def run(x: jax.Array, kernel: jax.Array) -> jax.Array:
        kernel = mesh.gather(kernel.astype(x.dtype), axes, summed)
        return fn(mesh.gather(x, (TENSOR,), summed and (TENSOR,)) if has_shards_of_tokens else x, kernel)

    return jax.checkpoint(run) if has_shards_of_tokens or mesh.is_sharded(kernel, axes) else run


def gather_all(params: Any, dtype: jnp.dtype) -> Any:
    """`params` gathered over `fsdp`, so that no layer gathers; kernels in `dtype`, to which layers cast them anyway."""

    def gathered(path: jax.tree_util.KeyPath, x: jax.Array) -> jax.Array:
        return mesh.gather(x.astype(dtype) if path_name(path).endswith("/kernel") else x)

    return jax.tree.map_with_path(gathered, params)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias` along the last dimensions of `x`, in the type of `x`.

    The gradient of the bias is a sum over all examples and tokens. It is computed in float32, because the bias is
    broadcast to the shape of `x` before it is cast to the type of `x`.
    """
    expanded = jnp.expand_dims(upcast(bias), range(x.ndim - bias.ndim))
    return x + jnp.broadcast_to(expanded, x.shape, out_sharding=jax.typeof(x).sharding).astype(x.dtype)


class Dense(nnx.Module):
    """The linear map `einsum(formula, x, kernel) + bias`; its output ends with letters of the kernel.

    Args:
        key: Random key of the kernel.
        formula: For example `"bnd,df->bnf"`.
        shape: Shape of the kernel.
        init: Initializer of the kernel; the bias starts at 0.
        spec: Sharding of the stored kernel.
        out_spec: Sharding of the output. A contraction over shards ends in an all-reduce.
        gathered: Axes over which the kernel is gathered for use.
        gathers_tokens: Whether an input whose tokens are sharded over `tensor` is gathered for use.
        scatters_tokens: Whether a contraction over shards of `tensor` ends in a reduce-scatter of the tokens over it.
        use_bias: Whether there is a bias.
        initial_scale: Initial value of a learned factor of each output (LayerScale, arXiv 2103.17239); None for no
            factor. It multiplies kernel and bias, which have fewer numbers than the outputs.
    """

    def __init__(
        self,
        key: jax.Array,
        formula: str,
        shape: tuple[int, ...],
        *,
        init: Initializer,
        spec: P,
        out_spec: P,
        gathered: tuple[str, ...] = (FSDP,),
        gathers_tokens: bool = False,
        scatters_tokens: bool = False,
        use_bias: bool = True,
        initial_scale: float | None = None,
    ) -> None:
        kernel_letters, out_letters = formula.split(",")[1].split("->")
        bias_shape = tuple(size for letter, size in zip(kernel_letters, shape, strict=True) if letter in out_letters)
        self.formula, self.out_spec, self.gathered = formula, out_spec, gathered
        self.gathers_tokens, self.scatters_tokens = gathers_tokens, scatters_tokens
        self.kernel = param(key, init, shape, spec)
        vector_spec = P(*out_spec[-len(bias_shape) :])
        self.bias = param(key, zeros, bias_shape, vector_spec) if use_bias else None
        self.scale = None if initial_scale is None else param(key, constant(initial_scale), bias_shape, vector_spec)

    def __call__(self, x_Bx: jax.Array, *, with_bias: bool = True) -> jax.Array:
        kernel, summed = self._scaled(self.kernel[...]), mesh.axes_of_examples(x_Bx)
        has_shards = self.gathers_tokens and mesh.is_sharded(x_Bx, (TENSOR,))
        formula, kernel = with_fast_gradient(self.formula, kernel)
        contract = partial(jnp.einsum, formula, out_sharding=on_mesh(self.out_spec))
        contract = partial(self._scattered, formula) if self.scatters_tokens else contract
        run = with_gathered_kernel(contract, kernel, self.gathered, summed, has_shards_of_tokens=has_shards)
        y_Bx = run(x_Bx, kernel)
        return add_bias(y_Bx, self._scaled(self.bias[...])) if with_bias and self.bias is not None else y_Bx

    def _scattered(self, formula: str, x_Bx: jax.Array, kernel: jax.Array) -> jax.Array:
        contract = partial(jnp.einsum, formula, x_Bx, kernel)
        return checkpoint_name(mesh.scatter_sum(contract, self.out_spec, TENSOR), SCATTERED)

    def _scaled(self, weight: jax.Array) -> jax.Array:
        if self.scale is None:
            return weight
        return weight * jnp.expand_dims(self.scale[...], range(weight.ndim - self.scale.ndim))


class LayerNorm(nnx.Module):
    """(x - mean) / sqrt(variance + eps) over the last dimension, then scale and bias; computed in float32.

    Mean and variance need one pass over x, so XLA fuses them with the operation that computes x. The variance is the
    mean square minus the square of the mean. Its relative error is up to 8 ulps times 1 + mean^2 / variance.
    """

    eps = 1e-6

    def __init__(self, key: jax.Array, width: int) -> None:
        self.scale = param(key, ones, (width,), P(None))
        self.bias = param(key, zeros, (width,), P(None))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (jnp.expand_dims(vector[...], range(x.ndim - 1)) for vector in (self.scale, self.bias))
        x_float32 = x.astype(jnp.float32)
        mean = jnp.mean(x_float32, axis=-1, keepdims=True)
        variance = jnp.maximum(_mean_square(x_float32) - jnp.square(mean), 0)
        return ((x_float32 - mean) * (jax.lax.rsqrt(variance + self.eps) * scale) + bias).astype(x.dtype)


class RMSNorm(nnx.Module):
    """x / sqrt(mean square + eps) over the last dimension, then a scale; computed in float32 (arXiv 1910.07467)."""

    eps = 1e-6

    def __init__(self, key: jax.Array, width: int) -> None:
        self.scale = param(key, ones, (width,), P(None))

    def __call__(self, x: jax.Array) -> jax.Array:
        scale = jnp.expand_dims(self.scale[...], range(x.ndim - 1))
        x_float32 = x.astype(jnp.float32)
        return (x_float32 * (jax.lax.rsqrt(_mean_square(x_float32) + self.eps) * scale)).astype(x.dtype)


def _mean_square(x: jax.Array) -> jax.Array:
    return jnp.mean(jnp.square(x), axis=-1, keepdims=True)


def gelu(x: jax.Array, *, approximate: bool) -> jax.Array:
    """x times the normal distribution function of x (arXiv 1606.08415); `approximate` is its formula with tanh."""
    function = partial(jax.nn.gelu, approximate=approximate)
    # Otherwise XLA for GPUs stores an intermediate result of the GELU as well. A TPU is slower with this.
    return (jax.checkpoint(function) if platform() == "gpu" else function)(x)


def fold(key_B: jax.Array | None, number: jax.typing.ArrayLike) -> jax.Array | None:
    """Keys of the examples for layer `number`; None stays None."""
    return None if key_B is None else jax.vmap(jax.random.fold_in, (0, None))(key_B, number)


def dropout(x_Bx: jax.Array, rate: float, key_B: jax.Array | None) -> jax.Array:
    """Sets each entry to 0 with probability `rate` and divides the others by `1 - rate`; the identity without keys."""
    if key_B is None or rate == 0:
        return x_Bx
    spec = on_mesh(P(*jax.typeof(x_Bx).sharding.spec[1:]))
    draw = partial(jax.random.bernoulli, p=1 - rate, shape=x_Bx.shape[1:], out_sharding=spec)
    return jnp.where(jax.vmap(draw)(key_B), x_Bx / (1 - rate), 0)


def rising_rates(last: float, num_blocks: int) -> Sequence[jax.Array | None] | jax.Array:
    """The rate of `drop_path` of each block: linear from 0 at the first to `last`; None for each if that is 0."""
    return jnp.linspace(0.0, last, num_blocks) if last else [None] * num_blocks


def drop_path(x_Bx: jax.Array, rate: jax.Array | None, key_B: jax.Array | None) -> jax.Array:
    """Sets each example to 0 with probability `rate`, else divides it by `1 - rate` (arXiv 1603.09382)."""
    if key_B is None or rate is None:
        return x_Bx
    keep_B = jax.vmap(partial(jax.random.bernoulli, p=1 - rate))(key_B)
    factor_B = (keep_B / (1 - rate)).astype(x_Bx.dtype)
    return x_Bx * jnp.expand_dims(factor_B, range(1, x_Bx.ndim))
