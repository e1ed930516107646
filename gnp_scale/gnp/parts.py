"""Cutting a batch into parts of consecutive examples, and averaging a function over them."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

type Tree = Any


def mean_over_parts(fn: Callable[[Tree], Tree], num_parts: int, batch: Tree) -> Tree:
    """The mean of `fn` over equal parts of `batch`, one after the other, as gradients are accumulated."""
    if num_parts == 1:
        return fn(batch)
    parts = jax.tree.map(partial(_cut, num_parts=num_parts), batch)
    results = jax.eval_shape(fn, jax.tree.map(lambda x: x[0], parts))

    def add(total: Tree, part: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, fn(part)), None

    total, _ = jax.lax.scan(add, jax.tree.map(_zeros, results), parts)
    return jax.tree.map(lambda x: x / num_parts, total)


def mean_over_axis(fn: Callable[[Tree, Tree], Tree], axis: str, batch: Tree, shared: Tree) -> Tree:
    """The mean of `fn(part, shared)` over the parts of `batch` that the shards of mesh axis `axis` hold.

    Each shard computes with its own part; the means are all that crosses `axis`. `shared` is a tree of arrays, which
    are the same on all shards, and of numbers.
    """

    def local(x: Any) -> Any:
        # Differentiating by something that is the same on all shards would sum over them, in every pass.
        return jax.lax.pcast(x, axis, to="varying") if isinstance(x, jax.Array) else x

    def run(part: Tree) -> Tree:
        return jax.lax.pmean(fn(part, jax.tree.map(local, shared)), axis)

    return jax.shard_map(run, in_specs=P(axis), out_specs=P(), axis_names={axis})(batch)


def first_part(batch: Tree, fraction: float) -> Tree:
    """The first `fraction` of the examples, spread over the same devices as all of them."""
    share = Fraction(fraction).limit_denominator(1000)

    def take(x: jax.Array) -> jax.Array:
        parts = _cut(x, share.denominator)[: share.numerator]
        shape = (len(x) * share.numerator // share.denominator, *x.shape[1:])
        return parts.reshape(shape, out_sharding=_spec(x))

    return batch if share == 1 else jax.tree.map(take, batch)


def _cut(x: jax.Array, num_parts: int) -> jax.Array:
    """`x` with its examples as (parts, examples of a part), each part spread over the devices as the whole is."""
    if len(x) % num_parts:
        raise ValueError(
            f"A batch is cut into equal parts of consecutive examples. Got {len(x)} examples for {num_parts} parts. "
            "Change the batch size, or perturb_groups, ascent_fraction or the number of accumulated parts."
        )
    spec = _spec(x)
    out_sharding = None if spec is None else P(None, *spec)
    return jnp.reshape(x, (num_parts, len(x) // num_parts, *x.shape[1:]), out_sharding=out_sharding)


def _spec(x: jax.Array) -> P | None:
    """How the examples are spread, None where no axis of the mesh is explicit."""
    spec = jax.typeof(x).sharding.spec
    return spec if any(spec) else None


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
    spec = None if x.sharding is None else x.sharding.spec
    zeros = jnp.zeros(x.shape, x.dtype, out_sharding=spec if spec and any(spec) else None)
    # A scan keeps the type of what it carries, the axes of an enclosing shard_map included.
    varying = () if x.manual_axis_type is None else tuple(x.manual_axis_type.varying)
    return jax.lax.pcast(zeros, varying, to="varying") if varying else zeros
