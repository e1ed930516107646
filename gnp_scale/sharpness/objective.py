"""A loss as a fixed function of the parameters: the mean over fixed examples, which are computed in parts.

T parts of B examples, with a mask for those that count.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

type Params = Any
type Part = dict[str, jax.Array]
type LossSum = Callable[[Params, Any, Part], jax.Array]
"""`loss_sum(params, shared, part)`: the sum of the losses of the examples of a part that count; a float32 scalar."""


class Fixed(NamedTuple):
    """All that a loss depends on beside the parameters."""

    shared: Any
    """For all parts, such as batch statistics; any tree."""
    parts: Part
    """Arrays T x B x ..., each part sharded over the devices that share the examples. `mask` is 0 or 1 (float32)."""


def value(loss_sum: LossSum, params: Params, fixed: Fixed) -> jax.Array:
    """The mean loss L(w)."""
    return _mean(lambda part: loss_sum(params, fixed.shared, part), fixed)


def gradient(loss_sum: LossSum, params: Params, fixed: Fixed) -> Params:
    """grad L(w), sharded as the parameters."""
    return _mean(lambda part: jax.grad(loss_sum)(params, fixed.shared, part), fixed)


def hessian_product(loss_sum: LossSum, params: Params, v: Params, fixed: Fixed) -> Params:
    """H v for the Hessian H of L, as the derivative of the gradient along v; sharded as the parameters."""

    def product(part: Part) -> Params:
        return jax.jvp(lambda w: jax.grad(loss_sum)(w, fixed.shared, part), (params,), (v,))[1]

    return _mean(product, fixed)


def groups(fixed: Fixed) -> Fixed:
    """Each part as a loss of its own: the same, with a dimension before T, for a loop over the parts."""
    return Fixed(fixed.shared, jax.tree.map(lambda x: x[:, None], fixed.parts))


def _mean(fn: Callable[[Part], Any], fixed: Fixed) -> Any:
    """The sum of `fn` over the parts, one after the other, divided by the number of examples that count."""
    first = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], fixed.parts))

    def add(total: Any, part: Part) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, fn(part)), None

    total, _ = jax.lax.scan(add, jax.tree.map(_zeros, first), fixed.parts)
    count = jnp.maximum(jnp.sum(fixed.parts["mask"]), 1.0)
    return jax.tree.map(lambda x: x / count, total)


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
    spec = None if x.sharding is None else x.sharding.spec
    return jnp.zeros(x.shape, x.dtype, out_sharding=spec if spec and any(spec) else None)
