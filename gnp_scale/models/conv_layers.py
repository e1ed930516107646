"""The layers of convolutional networks. Channels are not sharded: `tensor` is one more axis of examples here.

Kernels are stored in shards over both `fsdp` and `tensor`.

Shapes: B examples, H height, W width, C channels, K classes, G groups of examples.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from gnp_kernels.dispatch import platform
from jax.nn.initializers import Initializer, normal, ones, variance_scaling, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.config import check
from gnp_scale.mesh import AXES, BATCH, on_mesh
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


class BatchNorm(nnx.Module):
    """Batch normalisation with the statistics of groups of `group_size` consecutive examples of the global batch.

    In training, each group is normalised by its own mean and variance. The running statistics move by a tenth towards
    the averages over the groups. The position of an example in the batch determines its group, never its device.
    Examples are sharded over all axes of the mesh. Scale, bias and statistics are replicated.

    A group on several devices costs one all-reduce in the forward pass and one in the backward pass. If each group is
    on one device, there are none.

    If `is_frozen`, training normalises with the running statistics as evaluation does, and does not move them.
    """

    is_frozen = False
    eps = 1e-5
    momentum = 0.9

    def __init__(self, key: jax.Array, num_channels: int, group_size: int, scale_init: Initializer = ones) -> None:
        shape, spec = (num_channels,), P(None)
        self.group_size = group_size
        self.scale = param(key, scale_init, shape, spec)
        self.bias = param(key, zeros, shape, spec)
        self.mean = nnx.BatchStat(zeros(key, shape, jnp.float32, out_sharding=mesh.divisible_spec(spec, shape)))
        self.variance = nnx.BatchStat(ones(key, shape, jnp.float32, out_sharding=mesh.divisible_spec(spec, shape)))

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        if train and not self.is_frozen:
            mean_GxC, variance_GxC = self._statistics(x_BxHxWxC)
            self._move(self.mean, mean_GxC)
            self._move(self.variance, variance_GxC)
        else:
            mean_GxC, variance_GxC = self.mean[...][None], self.variance[...][None]
        factor_GxC = jax.lax.rsqrt(variance_GxC + self.eps) * self.scale[...][None]
        offset_GxC = self.bias[...][None] - mean_GxC * factor_GxC
        # One multiplication and one addition for each element, in float32.
        factor, offset = (self._of_group(value_GxC, len(x_BxHxWxC)) for value_GxC in (factor_GxC, offset_GxC))
        return (x_BxHxWxC * factor + offset).astype(x_BxHxWxC.dtype)

    def _statistics(self, x_BxHxWxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each group from one pass over `x_BxHxWxC`, in float32.

        It squares differences from the running mean, so a mean far from 0 loses no digits. The relative error of the
        variance is up to 32 ulps times 1 + (mean - running mean)^2 / variance.
        """
        shift_1xC = jax.lax.stop_gradient(self.mean[...])[None]
        difference = x_BxHxWxC.astype(jnp.float32) - shift_1xC[:, None, None]
        mean_GxC, square_GxC = map(self._group_means, (difference, jnp.square(difference)))
        return mean_GxC + shift_1xC, jnp.maximum(square_GxC - jnp.square(mean_GxC), 0)

    def _group_means(self, x_BxHxWxC: jax.Array) -> jax.Array:
        num_examples = len(x_BxHxWxC)
        num_groups = self._num_groups(num_examples)
        if num_groups == 1:
            return jnp.mean(x_BxHxWxC, axis=(0, 1, 2))[None]
        mean_BxC = jnp.mean(x_BxHxWxC, axis=(1, 2))
        if _are_local(num_groups):
            shape = (num_groups, self.group_size, mean_BxC.shape[1])
            return jnp.mean(jnp.reshape(mean_BxC, shape, out_sharding=on_mesh(P(AXES, None, None))), axis=1)
        member_BxG = self._membership(num_examples)
        return _exact_einsum("bg,bc->gc", member_BxG, mean_BxC, on_mesh(P(None, None))) / self.group_size

    def _of_group(self, value_GxC: jax.Array, num_examples: int) -> jax.Array:
        """The value of each example's group, of shape Bx1x1xC, or 1x1x1xC if there is only one group."""
        num_groups, num_channels = value_GxC.shape
        if num_groups == 1:
            return value_GxC[:, None, None]
        if _are_local(num_groups):
            shape = (num_groups, self.group_size, num_channels)
            value = jnp.broadcast_to(value_GxC[:, None], shape, out_sharding=on_mesh(P(AXES, None, None)))
            shape, spec = (num_examples, 1, 1, num_channels), on_mesh(P(AXES, None, None, None))
            return jnp.reshape(value, shape, out_sharding=spec)
        member_BxG = self._membership(num_examples)
        value_BxC = _exact_einsum("bg,gc->bc", member_BxG, value_GxC, on_mesh(P(AXES, None)))
        return value_BxC[:, None, None, :]

    def _num_groups(self, num_examples: int) -> int:
        check(
            num_examples % self.group_size == 0,
            f"{num_examples} examples of one pass do not divide into groups of {self.group_size} with their own batch "
            "statistics: make model.num_bn_groups a multiple of train.accumulate_steps, of "
            "gnp.perturb_groups and of 1 / gnp.ascent_fraction together",
        )
        return num_examples // self.group_size

    def _membership(self, num_examples: int) -> jax.Array:
        group_B = jnp.arange(num_examples) // self.group_size
        member_BxG = jax.nn.one_hot(group_B, num_examples // self.group_size)
        return shard_examples(member_BxG, AXES)

    def _move(self, running: nnx.BatchStat, value_GxC: jax.Array) -> None:
        value_C = jnp.mean(value_GxC, axis=0)
        running[...] = self.momentum * running[...] + (1 - self.momentum) * value_C


def _are_local(num_groups: int) -> bool:
    """Whether each group of examples is on one device."""
    return num_groups % mesh.current_axis_size(AXES) == 0


def _exact_einsum(formula: str, member_BxG: jax.Array, x: jax.Array, out_sharding: P | None) -> jax.Array:
    # HIGHEST, because the default rounds x to bfloat16 on TPUs.
    return jnp.einsum(formula, member_BxG, x, precision=jax.lax.Precision.HIGHEST, out_sharding=out_sharding)


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
    return _max_pool(x_BxHxWxC, size) if platform() == "tpu" else _max_pool_with_gradient(x_BxHxWxC, size)


def _max_pool(x_BxHxWxC: jax.Array, size: int) -> jax.Array:
    window, strides = (1, size, size, 1), (1, 2, 2, 1)
    return jax.lax.reduce_window(x_BxHxWxC, -jnp.inf, jax.lax.max, window, strides, _padding(size))


def _padding(size: int) -> tuple[tuple[int, int], ...]:
    return ((0, 0), *(((size - 1) // 2,) * 2,) * 2, (0, 0))


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool_with_gradient(x_BxHxWxC: jax.Array, size: int) -> jax.Array:
    return _max_pool(x_BxHxWxC, size)


def _max_pool_forward(x_BxHxWxC: jax.Array, size: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y_BxHxWxC = _max_pool(x_BxHxWxC, size)
    return y_BxHxWxC, (x_BxHxWxC, y_BxHxWxC)


def _max_pool_backward(size: int, kept: tuple[jax.Array, jax.Array], dy_BxHxWxC: jax.Array) -> tuple[jax.Array]:
    x, y = kept
    # Entry (i, j) of all windows is an image of the size of y: the padded x from (i, j) on, with stride 2.
    rows, columns = 2 * y.shape[1] - 1, 2 * y.shape[2] - 1
    padded = jnp.pad(x, _padding(size), constant_values=-jnp.inf)
    num_examples, height, width, num_channels = padded.shape
    is_taken, dx = jnp.zeros_like(y, bool), jnp.zeros_like(padded, jnp.float32)
    for i, j in itertools.product(range(size), repeat=2):
        entry = jax.lax.slice(padded, (0, i, j, 0), (num_examples, i + rows, j + columns, num_channels), (1, 2, 2, 1))
        is_first = (entry == y) & ~is_taken
        is_taken |= is_first
        share = jnp.where(is_first, dy_BxHxWxC.astype(jnp.float32), 0)
        around = ((0, 0, 0), (i, height - i - rows, 1), (j, width - j - columns, 1), (0, 0, 0))
        dx += jax.lax.pad(share, jnp.float32(0), around)
    margin = (size - 1) // 2
    return (dx[:, margin : height - margin, margin : width - margin].astype(x.dtype),)


_max_pool_with_gradient.defvjp(_max_pool_forward, _max_pool_backward)


def shard_examples(x_Bx: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    """Shards the examples of `x_Bx` over `axes` of the mesh; without a mesh, returns `x_Bx`."""
    spec = on_mesh(mesh.batch_spec(x_Bx.ndim, axes))
    return x_Bx if spec is None else jax.sharding.reshard(x_Bx, spec)


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
