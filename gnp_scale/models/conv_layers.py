"""The layers of convolutional networks. Channels are not sharded: `tensor` is one more axis of examples here.

Kernels are stored in shards over both `fsdp` and `tensor`.

Shapes: B examples, H height, W width, C channels, K classes, G groups of examples.
"""

import itertools
import operator
from functools import partial, reduce

import jax
import jax.numpy as jnp
from flax import nnx
from gnp_kernels.dispatch import platform
from gnp_kernels.trees import upcast
from jax.nn.initializers import Initializer, normal, variance_scaling, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.config import check
from gnp_scale.mesh import AXES, BATCH
from gnp_scale.models.convolution import convolve
from gnp_scale.models.layers import SHARDS, Dense, add_bias, param, with_gathered_kernel

HE_NORMAL = variance_scaling(2.0, "fan_out", "normal")
"""Normal weights of variance 2 / fan_out (arXiv 1502.01852, equation 14)."""
HEAD_INIT = normal(0.01)
"""Of the head (arXiv 1706.02677, section 5.1)."""
TORCH_HEAD_INIT = variance_scaling(1 / 3, "fan_in", "uniform")
"""Uniform weights of at most 1 / sqrt(fan_in), as of a dense layer of Torch."""


class Conv(nnx.Module):
    """A convolution with a square kernel.

    The initial weights of `HE_NORMAL` are those of the published ResNets and WideResNets. A bias starts at 0.

    Args:
        key: Random key of the kernel.
        size: Height and width of the kernel.
        num_in: Channels of the input.
        num_out: Channels of the output.
        stride: Distance of the windows.
        padding: Zeros on every side of the image; `size // 2` when None.
        num_groups: The channels are cut into so many groups; each output channel sees those of its own group.
        init: Initializer of the kernel.
        use_bias: Whether there is a bias.
    """

    def __init__(
        self,
        key: jax.Array,
        size: int,
        num_in: int,
        num_out: int,
        stride: int = 1,
        *,
        padding: int | None = None,
        num_groups: int = 1,
        init: Initializer = HE_NORMAL,
        use_bias: bool = False,
    ) -> None:
        self.stride, self.num_groups = stride, num_groups
        self.padding = size // 2 if padding is None else padding
        self.kernel = param(key, init, (size, size, num_in // num_groups, num_out), P(None, None, None, SHARDS))
        self.bias = param(key, zeros, (num_out,), P(None)) if use_bias else None

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        kernel = self.kernel[...]
        y_BxHxWxC = with_gathered_kernel(self.convolve, kernel, SHARDS)(x_BxHxWxC, kernel)
        return y_BxHxWxC if self.bias is None else add_bias(y_BxHxWxC, self.bias[...])

    def convolve(self, x_BxHxWxC: jax.Array, kernel: jax.Array) -> jax.Array:
        """The convolution of `x_BxHxWxC` with the gathered kernel."""
        return convolve(x_BxHxWxC, kernel, self.stride, self.padding, self.num_groups)


class Head(nnx.Module):
    """Average over the image and a dense layer, in float32."""

    def __init__(self, key: jax.Array, num_channels: int, num_classes: int, *, init: Initializer = HEAD_INIT) -> None:
        self.dense = Dense(
            key,
            "bc,ck->bk",
            (num_channels, num_classes),
            init=init,
            spec=P(SHARDS, None),
            out_spec=P(AXES, None),
            gathered=SHARDS,
        )

    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        return self.classify(average(x_BxHxWxC))

    def classify(self, x_BxC: jax.Array) -> jax.Array:
        """The logits of images whose average is `x_BxC`."""
        return shard_examples(self.dense(x_BxC), BATCH)


def average(x_BxHxWxC: jax.Array) -> jax.Array:
    """The average over each image, in float32 (B x C)."""
    return jnp.mean(x_BxHxWxC.astype(jnp.float32), axis=(1, 2))


def max_pool(x_BxHxWxC: jax.Array, size: int = 3) -> jax.Array:
    """Maximum over windows of `size` x `size`, with stride 2; the first of equal entries gets the gradient.

    An image is padded for windows of 3x3, and not for those of 2x2, which omit the last row of an odd number.

    XLA's own gradient is the fastest on a TPU. On a GPU it is a scatter: its sums depend on the order of threads, and
    it moves twice as many bytes. On a CPU it takes three times as long as this one.
    """
    if platform() == "tpu":
        return _max_pool(x_BxHxWxC, size)
    return _max_pool_with_gradient(x_BxHxWxC, size, x_BxHxWxC.shape[1:3])


def _max_pool(x_BxHxWxC: jax.Array, size: int) -> jax.Array:
    window, strides = (1, size, size, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x_BxHxWxC, -jnp.inf, jax.lax.max, window, strides, _padding(size))


def _padding(size: int) -> tuple[tuple[int, int], ...]:
    return ((0, 0), *(((size - 1) // 2,) * 2,) * 2, (0, 0))


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _max_pool_with_gradient(x_BxHxWxC: jax.Array, size: int, _: tuple[int, int]) -> jax.Array:
    return _max_pool(x_BxHxWxC, size)


def _max_pool_forward(x_BxHxWxC: jax.Array, size: int, _: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """The maxima, and the number of the entry that gives each.

    A comparison of x with the maxima in the backward pass would find no entry where XLA computes x again and rounds it
    otherwise.
    """
    padded = jnp.pad(upcast(x_BxHxWxC), _padding(size), constant_values=-jnp.inf)
    # Entry (i, j) of all windows is an image of the size of the result: the padded x from (i, j) on, with stride 2.
    y, *entries = (
        padded[:, i : padded.shape[1] - size + i + 1 : 2, j : padded.shape[2] - size + j + 1 : 2]
        for i, j in itertools.product(range(size), repeat=2)
    )
    number = jnp.zeros_like(y, jnp.uint8)
    for n, entry in enumerate(entries, 1):
        number = jnp.where(entry > y, jnp.uint8(n), number)
        y = jnp.maximum(y, entry)
    return y.astype(x_BxHxWxC.dtype), number


def _max_pool_backward(
    size: int, shape: tuple[int, int], number_BxHxWxC: jax.Array, dy_BxHxWxC: jax.Array
) -> tuple[jax.Array]:
    margin = (size - 1) // 2
    (height, width), (rows, columns) = (n + 2 * margin for n in shape), (2 * n - 1 for n in dy_BxHxWxC.shape[1:3])

    def share(number: int, i: int, j: int) -> jax.Array:
        dx = jnp.where(number_BxHxWxC == number, dy_BxHxWxC.astype(jnp.float32), 0)
        around = ((0, 0, 0), (i, height - i - rows, 1), (j, width - j - columns, 1), (0, 0, 0))
        return jax.lax.pad(dx, jnp.float32(0), around)

    entries = enumerate(itertools.product(range(size), repeat=2))
    dx = reduce(operator.add, (share(number, i, j) for number, (i, j) in entries))
    return (dx[:, margin : height - margin, margin : width - margin].astype(dy_BxHxWxC.dtype),)


_max_pool_with_gradient.defvjp(_max_pool_forward, _max_pool_backward)


def shard_examples(x_Bx: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Shards the examples of `x_Bx` over `axes` of the mesh; without a mesh, returns `x_Bx`."""
    return mesh.resharded(x_Bx, mesh.batch_spec(x_Bx.ndim, axes))


def shard_examples_over_all(x_Bx: jax.Array) -> jax.Array:
    """Shards the examples of `x_Bx` over all axes, for networks that do not shard their channels.

    Raises:
        ConfigError: the number of devices does not divide the number of examples.
    """
    num_devices = mesh.current_axis_size(AXES)
    check(
        len(x_Bx) % num_devices == 0,
        f"a batch of {len(x_Bx)} examples does not divide over {num_devices} devices, which a convolutional network "
        "requires: change data.batch_size or data.eval_batch_size",
    )
    return shard_examples(x_Bx, AXES)
