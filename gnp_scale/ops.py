"""The arithmetic of a step on sharded trees: the bridge to `gnp_kernels`.

With the implementation "reference" each operation is plain JAX on whole arrays, which XLA partitions. With "triton" or
"pallas" a kernel runs on the local shards, inside `shard_map` over all axes of the current mesh that no enclosing
`shard_map` took over. Sums are reduced over the axes that a leaf is sharded over, so that copies count once.
"""

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import gnp_kernels
import jax
import jax.numpy as jnp
from gnp_kernels import AdamW, Dots, Implementation, Sgd, Updated
from jax.sharding import PartitionSpec as P

type Tree = Any
type Scalar = float | jax.Array
type Leaves = list[jax.Array]


@jax.named_scope("gnp_norm")
def squared_norm(tree: Tree, weights: Tree = None, *, implementation: Implementation) -> jax.Array:
    """||a||^2, or sum (w a)^2 with `weights`; a scalar, the same on every device."""
    if implementation == "reference":
        return gnp_kernels.squared_norm(tree, weights=weights, implementation=implementation)
    trees = (tree,) if weights is None else (tree, weights)
    return _sum_of_shards(
        lambda a, w=None: gnp_kernels.squared_norm(a, weights=w, implementation=implementation), *trees
    )


@jax.named_scope("gnp_norm")
def dots(a: Tree, b: Tree, *, implementation: Implementation) -> Dots:
    """(<a, a>, <a, b>, <b, b>); scalars, the same on every device."""
    op = partial(gnp_kernels.dots, implementation=implementation)
    return op(a, b) if implementation == "reference" else _sum_of_shards(op, a, b)


@jax.named_scope("gnp_perturb")
def perturb(
    params: Tree,
    direction: Tree,
    scale: Scalar,
    *,
    implementation: Implementation,
    dtype: jax.typing.DTypeLike | None = None,
    adaptive: bool = False,
    mask: Tree = None,
) -> Tree:
    """w + scale * d; see `gnp_kernels.perturb`."""
    op = partial(gnp_kernels.perturb, dtype=dtype, adaptive=adaptive, mask=mask, implementation=implementation)
    if implementation == "reference":
        return op(params, direction, scale)
    return _on_shards(op, params, direction, jnp.asarray(scale, jnp.float32), out_specs=_specs(params))


@jax.named_scope("gnp_update")
def blend_update(
    params: Tree,
    g1: Tree,
    g2: Tree,
    moments: tuple[Tree, ...],
    *,
    rule: Sgd | AdamW,
    c1: Scalar,
    c2: Scalar,
    learning_rate: Scalar,
    count: Any,
    decay_mask: Tree,
    implementation: Implementation,
    copy_dtype: jax.typing.DTypeLike | None = None,
) -> Updated:
    """Blend and update; see `gnp_kernels.blend_update`."""
    op: Any = partial(gnp_kernels.blend_update, rule=rule, copy_dtype=copy_dtype, implementation=implementation)
    structure, decays = jax.tree.structure(params), jax.tree.leaves(decay_mask)
    groups = _leaves_by_axes(params)

    def update_shards(columns: list[Leaves], scalars: dict[str, jax.Array]) -> tuple[Any, ...]:
        parts = []
        for axes, places in groups.items():
            w, d1, d2, *m = ([column[i] for i in places] for column in columns)
            part = op(w, d1, d2 or None, tuple(m), decay_mask=[decays[i] for i in places], **scalars)
            sums = _sum_over(axes, (part.update_squared_norm, part.params_squared_norm))
            parts.append(Updated(part.params, part.moments, part.copy, *sums))
        return _merged(parts, [i for places in groups.values() for i in places])

    columns = [jax.tree.leaves(tree) for tree in (params, g1, g2, *moments)]
    scalars = {"c1": c1, "c2": c2, "learning_rate": learning_rate, "count": count}
    specs = _specs(columns[0])
    out_specs = (specs, (specs,) * rule.num_moments, specs if copy_dtype else None, P(), P())
    new = _on_shards(update_shards, columns, jax.tree.map(jnp.asarray, scalars), out_specs=out_specs)
    w, m, copy, *sums = new
    copy = None if copy is None else structure.unflatten(copy)
    return Updated(structure.unflatten(w), tuple(map(structure.unflatten, m)), copy, *sums)


def _merged(parts: list[Updated], order: list[int]) -> tuple[Any, ...]:
    """The leaves of all parts as they were before they were grouped, and the sums of their sums."""

    def merged(*lists: Leaves) -> Leaves:
        leaves = dict(zip(order, (leaf for part in lists for leaf in part), strict=True))
        return [leaves[i] for i in range(len(order))]

    w, m, copy, *sums = zip(*parts, strict=True)
    copy = None if copy[0] is None else merged(*copy)
    return merged(*w), tuple(merged(*moment) for moment in zip(*m, strict=True)), copy, *map(sum, sums)


def _sum_of_shards(op: Callable[..., Any], *trees: Tree) -> Any:
    """`op`, a sum over elements, of whole trees."""
    groups = _leaves_by_axes(trees[0])

    def sum_shards(*columns: Leaves) -> Any:
        parts = [
            _sum_over(axes, op(*([column[i] for i in places] for column in columns))) for axes, places in groups.items()
        ]
        return jax.tree.map(lambda *sums: sum(sums), *parts)

    return _on_shards(sum_shards, *map(jax.tree.leaves, trees), out_specs=P())


def _sum_over(axes: tuple[str, ...], sums: Any) -> Any:
    return jax.lax.psum(sums, axes) if axes else sums


def _leaves_by_axes(tree: Tree) -> dict[tuple[str, ...], list[int]]:
    """Places of the leaves that are sharded over the same mesh axes."""
    groups = defaultdict(list)
    for place, leaf in enumerate(jax.tree.leaves(tree)):
        names = {name for entry in _spec(leaf) for name in (entry if isinstance(entry, tuple) else (entry,)) if name}
        groups[tuple(sorted(names))].append(place)
    return dict(groups)


def _spec(x: jax.Array) -> P:
    return jax.typeof(x).sharding.spec


def _specs(tree: Tree) -> Tree:
    return jax.tree.map(_spec, tree)


def _on_shards(fn: Callable[..., Any], *args: Any, out_specs: Any) -> Any:
    """`fn` on the local shards of its arguments."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = set(mesh.axis_names) - set(mesh.manual_axes)
    if not axes:
        return fn(*args)
    # Kernels do not say over which axes their results vary.
    return jax.shard_map(fn, in_specs=_specs(args), out_specs=out_specs, axis_names=axes, check_vma=False)(*args)
