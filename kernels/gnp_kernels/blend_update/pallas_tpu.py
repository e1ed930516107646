"""Blend and update as a Pallas kernel for TPUs."""

from typing import Any

import jax
import jax.numpy as jnp

from gnp_kernels.blend_update.reference import Coefficients, Options, Updated, update_leaf
from gnp_kernels.pallas_leaves import map_leaves
from gnp_kernels.pallas_stream import Block
from gnp_kernels.trees import Tree, share


def blend_update(
    params: Tree, g1: Tree, g2: Tree, moments: tuple[Tree, ...], k: Coefficients, options: Options
) -> Updated:
    """See `api.blend_update`; parameters and moments are overwritten where the program allows it."""
    structure, decays = jax.tree.structure(params), jax.tree.leaves(options.decay_mask)
    grads = (g1,) if g2 is None else (g1, g2)
    columns = [jax.tree.leaves(tree) for tree in (params, *moments, *grads)]
    num_kept = 1 + options.rule.num_moments

    def arithmetic(block: Block, *elements: jax.Array) -> tuple[Any, Any]:
        w, *m, d1, d2 = elements if g2 is not None else (*elements, None)
        loaded = Coefficients(*(block.scalars[0][number] for number in range(len(k))))
        w, step, m = update_leaf(w, d1, d2, tuple(m), loaded, options.rule, decays[block.leaf])
        copies = () if options.copy_dtype is None else (w.astype(options.copy_dtype),)
        factor = share(options.shares, block.leaf)
        return (w, *m, *copies), (factor * (step * step), factor * (w * w))

    out_dtypes = [[x.dtype for x in column] for column in columns[:num_kept]]
    if options.copy_dtype is not None:
        out_dtypes.append([options.copy_dtype for _ in columns[0]])
    results, sums = map_leaves(
        "gnp_blend_update",
        arithmetic,
        columns,
        out_dtypes,
        scalars=[jnp.stack(k)],
        num_sums=2,
        sources=[number if number < num_kept else None for number in range(len(out_dtypes))],
    )
    new, copies = [structure.unflatten(column) for column in results[:num_kept]], results[num_kept:]
    return Updated(new[0], tuple(new[1:]), structure.unflatten(copies[0]) if copies else None, *sums)
