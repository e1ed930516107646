"""Which gradients XLA stores, and in which order, where its own choice was measured to be slower."""

from functools import partial
from typing import Any

import jax
from gnp_kernels.dispatch import platform
from jax.experimental.layout import Layout, with_layout_constraint


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_gradient_order(x: jax.Array, order: Layout) -> jax.Array:
    """`x`; its gradient is stored in this order."""
    return x


def _constrain(order: Layout, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (with_layout_constraint(gradient, order),)


_with_gradient_order.defvjp(lambda x, _: (x, None), _constrain)


@jax.custom_vjp
def with_stored_gradient(x: jax.Array) -> jax.Array:
    """`x`; on CPUs its gradient is stored.

    The gradient of a residual stream has many uses. For each of them, XLA for CPUs computes the elementwise operations
    of all later blocks again.
    """
    return x


def _store(_: None, gradient: jax.Array) -> tuple[jax.Array]:
    return (jax.lax.optimization_barrier(gradient) if platform() == "cpu" else gradient,)


with_stored_gradient.defvjp(lambda x: (x, None), _store)


def with_fast_gradient(formula: str, kernel: jax.Array) -> tuple[str, jax.Array]:
    """Formula and kernel for `einsum(formula, x, kernel)`: on CPUs a matrix is transposed.

    JAX writes the gradient of a matrix as (dy^T x)^T. XLA for CPUs turns that into the product of x^T and dy with both
    factors transposed, which it cannot give to YNNPACK. The gradient of the transposed matrix is dy^T x.
    """
    if platform() != "cpu" or kernel.ndim != 2:
        return formula, kernel
    factors, out = formula.split("->")
    of_x, of_kernel = factors.split(",")
    return f"{of_x},{of_kernel[::-1]}->{out}", with_stored_gradient(kernel.T)


def with_row_major_gradient(x: jax.Array) -> jax.Array:
    """`x`; its gradient is stored in row-major order.

    XLA for GPUs prefers to sum over contiguous numbers. If a gradient is summed over the examples alone, it stores the
    activations of all layers with the examples contiguous, and transposes them for most operations.
    """
    return _with_gradient_order(x, Layout(tuple(range(x.ndim))))


def stored_orders(params: Any) -> Any:
    """In which order a device of the current mesh stores each parameter; None where gradients need not follow it.

    If XLA for TPUs chooses another order for a gradient, it transposes the parameter and its optimizer state to that
    order in each step, and their new values back.

    Args:
        params: Arrays, or their shapes, types and shardings.
    """
    if platform() != "tpu":
        return None
    device = jax.sharding.get_mesh().devices.flat[0]

    def order(x: jax.Array | jax.ShapeDtypeStruct) -> Layout:
        stored = device.client.get_default_layout(x.dtype, x.sharding.shard_shape(x.shape), device)
        return Layout(Layout.from_pjrt_layout(stored).major_to_minor)

    return jax.tree.map(order, params)


def with_gradient_orders(params: Any, orders: Any) -> Any:
    """`params`; their gradients are stored in the orders of `stored_orders`."""
    return params if orders is None else jax.tree.map(_with_gradient_order, params, orders)
