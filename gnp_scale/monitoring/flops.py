"""Counts the floating-point operations of a function, and has the peak rates of devices.

Matrix multiplications and convolutions are counted in the function's jaxpr, where loops have a length: the cost
analysis of a compiled program counts the body of a loop once.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, jaxprs_in_params

# Dense bfloat16 FLOP/s of one device, by `device_kind`. TPU: Google Cloud's "TPU system architecture" pages, kinds as
# in jax's tpu_info. GPU: NVIDIA's data sheets of A100, H100, H200 and HGX B200, halved where they count sparsity.
_PEAK_FLOPS_PER_S = {
    "TPU v4": 275e12,
    "TPU v5e": 197e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6e": 918e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def peak_flops_per_s(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device of this `jax.Device.device_kind`; None if it is unknown."""
    return _PEAK_FLOPS_PER_S.get(device_kind)


def flops(fn: Callable[..., Any], *args: Any) -> int:
    """FLOPs of the matrix multiplications and convolutions of `fn(*args)`, over all devices together.

    A multiply-add is 2. The body of a `scan` counts once per iteration, and that of a `shard_map` once per shard. Of a
    `cond` the most expensive branch counts. Products with the zeros of a convolution's padding or dilation do not
    count, so that the gradient of a convolution costs twice its forward pass. Operations that `jax.checkpoint` repeats
    count again.

    Args:
        fn: A function that JAX can trace. It is not run.
        *args: Its arguments: arrays, or `jax.ShapeDtypeStruct` instead.

    Raises:
        ValueError: a `while` loop multiplies matrices, so the count is unknown.

    >>> x = jax.ShapeDtypeStruct((8, 16), "float32")
    >>> flops(lambda x: x @ x.T, x)  # 2 * 8 * 8 * 16
    2048
    """
    return jaxpr_flops(jax.make_jaxpr(fn)(*args))


def jaxpr_flops(jaxpr: Jaxpr | ClosedJaxpr) -> int:
    """The same of a function that is already traced."""
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: JaxprEqn) -> int:
    params = equation.params
    inner = [jaxpr_flops(jaxpr) for jaxpr in jaxprs_in_params(params)]
    match equation.primitive.name:
        case "dot_general":
            return _dot_flops(equation)
        case "conv_general_dilated":
            return _convolution_flops(equation)
        case "dot_product_attention_fwd_wrapper":
            return _attention_flops(equation)
        case "jit" if params["name"] == "attend_on_tpu":
            return _attention_flops(equation)
        case "jit" if params["name"] == "mix_heads":
            kernel_HxG, head_BxQxS, *_ = _shapes(equation)
            return 2 * math.prod(kernel_HxG) * math.prod(head_BxQxS)
        case "scan":
            return params["length"] * sum(inner)
        case "cond":
            return max(inner)
        case "shard_map":
            return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"]) * sum(inner)
        case "while" if sum(inner):
            raise ValueError(
                "cannot count the FLOPs of a while loop whose number of iterations is not known: "
                "use jax.lax.scan, or jax.lax.fori_loop with constant bounds"
            )
    return sum(inner)


def _dot_flops(equation: JaxprEqn) -> int:
    (contracting, _), _ = equation.params["dimension_numbers"]
    lhs, _, out = _shapes(equation)
    return 2 * math.prod(out) * math.prod(lhs[dim] for dim in contracting)


def _attention_flops(equation: JaxprEqn) -> int:
    """Of a kernel for attention: the products of query and key, and of weights and value."""
    query_BxNxHxK, key_BxNxHxK, *_ = _shapes(equation)
    return 4 * math.prod(query_BxNxHxK) * key_BxNxHxK[1]


def _convolution_flops(equation: JaxprEqn) -> int:
    lhs, rhs, out = _shapes(equation)
    params = equation.params
    lhs_dims, rhs_dims, out_dims = params["dimension_numbers"]
    windows = zip(
        (lhs[dim] for dim in lhs_dims[2:]),
        (rhs[dim] for dim in rhs_dims[2:]),
        (out[dim] for dim in out_dims[2:]),
        params["window_strides"],
        (low for low, _ in params["padding"]),
        params["lhs_dilation"],
        params["rhs_dilation"],
        strict=True,
    )
    num_products = math.prod(_num_products(*window) for window in windows)
    in_channels_per_group = rhs[rhs_dims[1]]
    return 2 * out[out_dims[0]] * out[out_dims[1]] * in_channels_per_group * num_products


def _shapes(equation: JaxprEqn) -> tuple[tuple[int, ...], ...]:
    avals: list[Any] = [var.aval for var in (*equation.invars, *equation.outvars)]
    return tuple(aval.shape for aval in avals)


def _num_products(lhs: int, rhs: int, out: int, stride: int, padding: int, lhs_dilation: int, rhs_dilation: int) -> int:
    """Pairs of an output and a kernel position along one dimension that read a real input, not padding."""
    outputs, taps = np.meshgrid(np.arange(out), np.arange(rhs))
    position = outputs * stride + taps * rhs_dilation - padding
    inside = (position >= 0) & (position <= (lhs - 1) * lhs_dilation)
    return int(np.sum(inside & (position % lhs_dilation == 0)))
