"""The perturbation as a Pallas kernel for TPUs."""

from typing import Any

import jax
import jax.numpy as jnp

from gnp_kernels.pallas_leaves import map_leaves
from gnp_kernels.pallas_stream import Block
from gnp_kernels.perturb.reference import random_bits_at, stochastic_bfloat16
from gnp_kernels.trees import Scalar, Tree, wide


def perturb(
    params: Tree,
    grads: Tree,
    scale: Scalar,
    dtype: jax.typing.DTypeLike | None,
    adaptive: bool,
    mask: Tree,
    seed: jax.Array | None,
) -> Tree:
    """w + scale * g where `mask` is True; see `api.perturb`."""
    structure = jax.tree.structure(params)
    columns = [jax.tree.leaves(tree) for tree in (params, grads, mask)]
    new = [w.astype(w.dtype if dtype is None else dtype) for w in columns[0]]
    moved = [number for number, is_chosen in enumerate(columns[2]) if is_chosen]

    def arithmetic(block: Block, w: jax.Array, g: jax.Array) -> tuple[Any, Any]:
        number = moved[block.leaf]
        step = wide(g) * jnp.abs(wide(w)) * jnp.abs(wide(w)) if adaptive else wide(g)
        x = wide(w) + block.scalars[0][0] * step
        if seed is None or new[number].dtype != jnp.bfloat16:
            return (x.astype(new[number].dtype),), ()
        return (stochastic_bfloat16(x, random_bits_at(block.positions(), block.scalars[1][0], number)),), ()

    scalars = [jnp.asarray(scale, jnp.float32)] + ([] if seed is None else [seed.astype(jnp.uint32)])
    w, g = ([column[number] for number in moved] for column in columns[:2])
    out_dtypes = [new[number].dtype for number in moved]
    results, _ = map_leaves("gnp_perturb", arithmetic, [w, g], [out_dtypes], scalars=[x.reshape(1) for x in scalars])
    for number, leaf in zip(moved, results[0], strict=True):
        new[number] = leaf
    return structure.unflatten(new)
