"""The mean of a function over the parts of a batch that the shards of a mesh axis hold."""

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from gnp_kernels.dispatch import platform
from gnp_kernels.trees import upcast
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh

type Tree = Any


def mean_over_axis(fn: Callable[[Tree, Tree], Tree], axis: str, batch: Tree, shared: Tree) -> Tree:
    """The mean of `fn(part, shared)`, at least in float32, over the parts of `batch` on the shards of `axis`.

    Each shard computes with its own part. Only the results cross `axis`, in their types, and each number once: of a
    result that is the same on all devices of a shard, each of these sends a part. `shared` is a tree of numbers, and of
    arrays that are the same on all shards.
    """

    values, structure = jax.tree.flatten(shared)
    arrays = {place: x for place, x in enumerate(values) if isinstance(x, jax.Array)}

    def run(part: Tree, arrays: dict[int, jax.Array]) -> Tree:
        # A derivative with respect to a value that is the same on all shards would be summed over them, in every pass.
        local = {place: jax.lax.pcast(x, axis, to="varying") for place, x in arrays.items()}
        both = [local.get(place, x) for place, x in enumerate(values)]
        leaves, treedef = jax.tree.flatten(fn(part, jax.tree.unflatten(structure, both)))
        return jax.tree.unflatten(treedef, _means(leaves, axis))

    return jax.shard_map(run, in_specs=(P(axis), P()), out_specs=P(), axis_names={axis})(batch, arrays)


def _means(leaves: Sequence[jax.Array], axis: str) -> list[jax.Array]:
    shape = jax.sharding.get_abstract_mesh().shape
    others = tuple(name for name in shape if mesh.current_axis_size(name) > 1)
    whole = {place for place, x in enumerate(leaves) if others and not mesh.is_sharded(x, others)}
    sums = {place: _sum(x, axis) for place, x in enumerate(leaves) if place not in whole}
    for dtype in sorted({leaves[place].dtype for place in whole}, key=str):
        places = [place for place in sorted(whole) if leaves[place].dtype == dtype]
        sums |= zip(places, _sums_of_whole([leaves[place] for place in places], axis, others), strict=True)
    return [upcast(sums[place]) / shape[axis] for place in range(len(leaves))]


def _sums_of_whole(arrays: Sequence[jax.Array], axis: str, others: tuple[str, ...]) -> list[jax.Array]:
    """The sums of `arrays` over `axis`; the devices along `others`, on which they are the same, share them out."""
    flat = jnp.concatenate([jnp.ravel(jax.sharding.reshard(x, P(*(None,) * x.ndim))) for x in arrays])
    parts = jax.sharding.reshard(jnp.pad(flat, (0, -flat.size % mesh.current_axis_size(others))), P(others))
    # The compiler would move another way to gather them to before the sum.
    gather = partial(jax.lax.all_gather, axis_name=others, tiled=True)
    whole = jax.shard_map(gather, in_specs=P(others), out_specs=P(None), axis_names={*others}, check_vma=False)
    total = whole(_sum(parts, axis))
    ends = itertools.accumulate(x.size for x in arrays)
    found = (jnp.reshape(total[end - x.size : end], x.shape) for end, x in zip(ends, arrays, strict=True))
    return [jax.sharding.reshard(x, jax.typeof(old).sharding.spec) for x, old in zip(found, arrays, strict=True)]


def _sum(x: jax.Array, axis: str) -> jax.Array:
    # XLA for CPUs adds bfloat16 up in float32 anyway, and in a `shard_map` it ends the process (AllReducePromotion).
    return jax.lax.psum(upcast(x) if platform() == "cpu" else x, axis)
