"""A convolution of images whose gradients are fast on CPUs.

XLA for CPUs has fast code for convolutions of B x H x W x C with H x W x C x O only. It brings others to that form
where they are not in a loop (`xla::cpu::ConvCanonicalization` visits the entry computation alone), and the gradient of
a kernel in groups nowhere. So in a loop, such as that over microbatches, the gradients as JAX writes them take 20 times
as long, and those of kernels in groups everywhere 6 to 60 times. On CPUs they are written in the fast form here.

Shapes: B examples, H height, W width, C channels of the input, O of the output.
"""

from functools import partial

import jax
from gnp_kernels.dispatch import platform

from gnp_scale import mesh
from gnp_scale.mesh import AXES

_conv = partial(jax.lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def convolve(x_BxHxWxC: jax.Array, kernel: jax.Array, stride: int, padding: int, num_groups: int = 1) -> jax.Array:
    """The convolution of images with a square kernel; `padding` zeros are on each side.

    With groups, each output channel sees only the input channels of its own group: `kernel` has C / `num_groups` of
    them. `stride` is the distance of the windows.
    """
    # Examples of several devices cannot be reshaped to channels.
    is_plain = platform() != "cpu" or (num_groups > 1 and mesh.is_sharded(x_BxHxWxC, AXES))
    return (_convolve if is_plain else _convolve_on_cpu)(x_BxHxWxC, kernel, stride, padding, num_groups)


def _convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int, num_groups: int) -> jax.Array:
    return _conv(x, kernel, (stride, stride), ((padding, padding),) * 2, feature_group_count=num_groups)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _convolve_on_cpu(x: jax.Array, kernel: jax.Array, stride: int, padding: int, num_groups: int) -> jax.Array:
    return _convolve(x, kernel, stride, padding, num_groups)


def _forward(x: jax.Array, kernel: jax.Array, *settings: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # Stored once: else XLA computes it again for the kernel's gradient, with the residual stream before it, in an order
    # of numbers in which that is slow.
    x = jax.lax.optimization_barrier(x)
    return _convolve(x, kernel, *settings), (x, kernel)


def _backward(
    stride: int, padding: int, num_groups: int, kept: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    size = kernel.shape[0]
    # By side of the image: how many pixels it has, and where its last window begins.
    sides = [(num_in, (num_out - 1) * stride) for num_in, num_out in zip(x.shape[1:3], dy.shape[1:3], strict=True)]
    dx = _conv(
        dy,
        _transposed(kernel, num_groups),
        (1, 1),
        [(size - 1 - padding, num_in + padding - 1 - last) for num_in, last in sides],
        lhs_dilation=(stride, stride),
        feature_group_count=num_groups,
        out_sharding=jax.typeof(x).sharding,
    )
    dkernel_CxHxWxO = _conv(
        _examples_last(x, num_groups),
        dy.transpose(1, 2, 0, 3),
        (1, 1),
        [(padding, size + last - num_in - padding) for num_in, last in sides],
        rhs_dilation=(stride, stride),
        feature_group_count=num_groups,
        out_sharding=jax.typeof(kernel).sharding,
    )
    return dx, dkernel_CxHxWxO.transpose(1, 2, 0, 3)


_convolve_on_cpu.defvjp(_forward, _backward)


def _transposed(kernel: jax.Array, num_groups: int) -> jax.Array:
    """The kernel of the transposed convolution: turned, and with the channels of each group exchanged."""
    turned = kernel[::-1, ::-1]
    if num_groups == 1:
        return turned.swapaxes(2, 3)
    height, width, num_in, num_out = kernel.shape
    grouped = turned.reshape(height, width, num_in, num_groups, num_out // num_groups)
    return grouped.transpose(0, 1, 4, 3, 2).reshape(height, width, num_out // num_groups, num_groups * num_in)


def _examples_last(x_BxHxWxC: jax.Array, num_groups: int) -> jax.Array:
    """The channels of a group as examples, and the examples of each group as its channels."""
    if num_groups == 1:
        return x_BxHxWxC.transpose(3, 1, 2, 0)
    num_examples, height, width, num_channels = x_BxHxWxC.shape
    num_in = num_channels // num_groups
    grouped = x_BxHxWxC.reshape(num_examples, height, width, num_groups, num_in)
    # Axes of one device are also in the type of the examples, and a reshape must say where they go.
    whole = jax.NamedSharding(jax.typeof(x_BxHxWxC).sharding.mesh, jax.P(None, None, None, None))
    shape = num_in, height, width, num_groups * num_examples
    return jax.lax.reshape(grouped.transpose(4, 1, 2, 3, 0), shape, out_sharding=whole)
