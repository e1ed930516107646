"""The arithmetic of a step on sharded trees: the bridge to `gnp_kernels`.

With the implementation "xla" each operation is plain JAX on whole arrays, which XLA partitions. With "triton" or
"pallas" a kernel runs on the local shards, inside `shard_map` over all axes of the current mesh that are not yet manual
in an enclosing `shard_map`. Sums are reduced over the axes that a leaf is sharded over, so that replicas count once.
"""

import math
from functools import partial
from typing import Any, NamedTuple, Self

import gnp_kernels
import jax
import jax.numpy as jnp
from gnp_kernels import AdamW, Dots, Implementation, Sgd, Updated
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh

type Tree = Any
type Scalar = float | jax.Array


@jax.named_scope("gnp_norm")
def squared_norm(tree: Tree, weights: Tree = None, *, implementation: Implementation) -> jax.Array:
    """||a||^2, or sum (w a)^2 with `weights`; a scalar, the same on every device."""
    if implementation == "xla":
        return gnp_kernels.squared_norm(tree, weights=weights, implementation=implementation)
    shards = _Shards.of(tree)

    def on_shards(tree: Tree, weights: Tree) -> jax.Array:
        op = partial(gnp_kernels.squared_norm, weights=weights, implementation=implementation)
        return shards.sum_over_mesh(op(tree, shares=shards.shares))

    return mesh.on_shards(on_shards, tree, weights, out_specs=P())


@jax.named_scope("gnp_norm")
def dots(a: Tree, b: Tree, *, implementation: Implementation) -> Dots:
    """(<a, a>, <a, b>, <b, b>); scalars, the same on every device."""
    if implementation == "xla":
        return gnp_kernels.dots(a, b, implementation=implementation)
    shards = _Shards.of(a)

    def on_shards(a: Tree, b: Tree) -> jax.Array:
        return shards.sum_over_mesh(gnp_kernels.dots(a, b, shares=shards.shares, implementation=implementation))

    return Dots(*mesh.on_shards(on_shards, a, b, out_specs=P()))


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
    if implementation == "xla":
        return op(params, direction, scale)
    return mesh.on_shards(op, params, direction, jnp.asarray(scale, jnp.float32), out_specs=mesh.specs(params))


@jax.named_scope("gnp_update")
def blend_update(
    params: Tree,
    g1: Tree,
    g2: Tree,
    moments: tuple[Tree, ...],
    scalars: dict[str, Any],
    *,
    rule: Sgd | AdamW,
    decay_mask: Tree,
    implementation: Implementation,
    copy_dtype: jax.typing.DTypeLike | None = None,
) -> Updated:
    """Blend and update, with `scalars` c1, c2, learning_rate, count and applies; see `gnp_kernels.blend_update`."""
    shards, specs = _Shards.of(params), mesh.specs(params)

    def on_shards(trees: tuple[Tree, ...], scalars: dict[str, jax.Array]) -> tuple[Any, ...]:
        new = gnp_kernels.blend_update(
            *trees,
            rule=rule,
            decay_mask=decay_mask,
            copy_dtype=copy_dtype,
            shares=shards.shares,
            implementation=implementation,
            **scalars,
        )
        return *new[:3], shards.sum_over_mesh(new[3:])

    arguments = (params, g1, g2, moments), jax.tree.map(jnp.asarray, scalars)
    out_specs = (specs, (specs,) * rule.num_moments, None if copy_dtype is None else specs, P())
    *trees, squared_norms = mesh.on_shards(on_shards, *arguments, out_specs=out_specs)
    return Updated(*trees, *squared_norms)


class _Shards(NamedTuple):
    """How the leaves of a tree are sharded on the mesh."""

    axes: tuple[str, ...]
    """Mesh axes that any leaf is sharded over."""
    shares: tuple[float, ...]
    """1 / (number of replicas of each leaf along those axes)."""

    @classmethod
    def of(cls, tree: Tree) -> Self:
        sizes = jax.sharding.get_abstract_mesh().shape
        axes_of = [set(mesh.axes_of_spec(spec)) for spec in jax.tree.leaves(mesh.specs(tree))]
        axes = tuple(sorted(set().union(*axes_of)))
        return cls(axes, tuple(1 / math.prod(sizes[axis] for axis in axes if axis not in own) for own in axes_of))

    def sum_over_mesh(self, sums: Any) -> jax.Array:
        """The sums over all shards, in one all-reduce."""
        stacked = jnp.stack(sums) if isinstance(sums, tuple) else sums
        return jax.lax.psum(stacked, self.axes) if self.axes else stacked
