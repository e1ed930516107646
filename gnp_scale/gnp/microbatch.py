"""Splits a batch into groups or microbatches, and averages a function over them, one after the other.

The examples lie on the devices in order. Groups consist of consecutive examples, so this moves examples between
devices. Microbatches of an accumulation may have any examples, so each device splits its own.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from gnp_kernels.trees import upcast
from jax.sharding import PartitionSpec as P

from gnp_scale.mesh import axes_of_spec

type Tree = Any


def mean_over_groups(fn: Callable[[Tree], Tree], num_groups: int, batch: Tree) -> Tree:
    """The mean of `fn` over equal groups of consecutive examples, one after the other."""
    return _mean_over(fn, jax.tree.map(partial(_consecutive, num_parts=num_groups), batch))


def mean_over_microbatches(fn: Callable[..., Tree], num_microbatches: int, num_together: int) -> Callable[..., Tree]:
    """`fn(params, batch, *rest)` as the mean, at least in float32, over equal microbatches, one after the other.

    A microbatch is every `num_microbatches`-th run of `num_together` consecutive examples. If the runs do not divide
    evenly over the devices, it is consecutive examples.
    """
    if num_microbatches == 1:
        return fn

    def mean_fn(params: Tree, batch: Tree, *rest: Any) -> Tree:
        deal = partial(_dealt, num_parts=num_microbatches, num_together=num_together)
        return _mean_over(lambda microbatch: upcast_tree(fn(params, microbatch, *rest)), jax.tree.map(deal, batch))

    return mean_fn


def upcast_tree(tree: Tree) -> Tree:
    """Its arrays and numbers as arrays of at least float32."""
    return jax.tree.map(lambda x: upcast(jnp.asarray(x)), tree)


def _mean_over(fn: Callable[[Tree], Tree], parts: Tree) -> Tree:
    num_parts = len(jax.tree.leaves(parts)[0])
    results = jax.eval_shape(fn, jax.tree.map(_first, parts))

    def add(total: Tree, part: Tree) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, fn(part)), None

    total, _ = jax.lax.scan(add, jax.tree.map(_zeros, results), parts)
    return jax.tree.map(lambda x: x / num_parts, total)


def _first(parts: jax.Array) -> jax.Array:
    # JAX forgets the axes of one device over which keys are sharded when it takes one of them.
    return _reshape(parts[:1], parts.shape[1:], P(*_spec(parts)[1:]))


def exact(fraction: float) -> Fraction:
    """The fraction of small terms that `fraction` stands for: 1/3 for 0.33333."""
    return Fraction(fraction).limit_denominator(1000)


def first_part(batch: Tree, fraction: float) -> Tree:
    """The first `fraction` of the examples, sharded over the same devices as all of them."""
    share = exact(fraction)

    def take(x: jax.Array) -> jax.Array:
        parts = _consecutive(x, share.denominator)[: share.numerator]
        num_examples = len(x) * share.numerator // share.denominator
        return _reshape(parts, (num_examples, *x.shape[1:]), _spec(x))

    return batch if share == 1 else jax.tree.map(take, batch)


def _consecutive(x: jax.Array, num_parts: int) -> jax.Array:
    """`x` as (parts, consecutive examples of a part), with each part sharded like `x`."""
    if len(x) % num_parts:
        raise ValueError(
            f"A batch must split into equal parts. Got {len(x)} examples for {num_parts} parts. "
            "Change the batch size, perturb_groups, ascent_fraction or the number of microbatches."
        )
    return _reshape(x, (num_parts, len(x) // num_parts, *x.shape[1:]), P(None, *_spec(x)))


def _dealt(x: jax.Array, num_parts: int, num_together: int) -> jax.Array:
    """`x` as (parts, examples of a part); runs of `num_together` examples are dealt to one part after the other."""
    num_runs, num_left = divmod(len(x), num_parts * num_together)
    spread, *others = _spec(x)
    if num_left or num_runs % _num_shards(x):
        return _consecutive(x, num_parts)
    runs = _reshape(x, (num_runs, num_parts, num_together, *x.shape[1:]), P(spread, None, None, *others))
    num_examples = num_runs * num_together
    return _reshape(jnp.swapaxes(runs, 0, 1), (num_parts, num_examples, *x.shape[1:]), P(None, spread, *others))


def _reshape(x: jax.Array, shape: tuple[int, ...], spec: P) -> jax.Array:
    # If no axis of the mesh is explicit, no sharding is given.
    return jnp.reshape(x, shape, out_sharding=spec if any(spec) else None)


def _num_shards(x: jax.Array) -> int:
    sharding = jax.typeof(x).sharding
    return math.prod(sharding.mesh.shape[axis] for axis in axes_of_spec(P(sharding.spec[0])))


def _spec(x: jax.Array) -> P:
    return jax.typeof(x).sharding.spec


def _zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
    spec = None if x.sharding is None else x.sharding.spec
    zeros = jnp.zeros(x.shape, x.dtype, out_sharding=spec if spec and any(spec) else None)
    # A scan keeps the type of its carry, including the varying axes of an enclosing shard_map.
    varying = () if x.manual_axis_type is None else tuple(x.manual_axis_type.varying)
    return jax.lax.pcast(zeros, varying, to="varying") if varying else zeros
