"""The perturbation as a Pallas kernel for TPUs."""

from typing import Any

import jax
import jax.numpy as jnp

from gnp_kernels.pallas_leaves import map_leaves
from gnp_kernels.pallas_stream import Block
from gnp_kernels.trees import Scalar, Tree, upcast


def perturb(
    params: Tree,
    grads: Tree,
    scale: Scalar,
    dtype: jax.typing.DTypeLike | None,
    adaptive: bool,
    mask: Tree,
) -> Tree:
    """w + scale * g where `mask` is True; see `api.perturb`."""
    structure = jax.tree.structure(params)
    columns = [jax.tree.leaves(tree) for tree in (params, grads, mask)]
    new = [w.astype(w.dtype if dtype is None else dtype) for w in columns[0]]
    moved = [number for number, is_chosen in enumerate(columns[2]) if is_chosen]

    def arithmetic(block: Block, w: jax.Array, g: jax.Array) -> tuple[Any, Any]:
        step = upcast(g) * jnp.abs(upcast(w)) * jnp.abs(upcast(w)) if adaptive else upcast(g)
        x = upcast(w) + block.scalars[0][0] * step
        return (x.astype(out_dtypes[block.leaf]),), ()

    w, g = ([column[number] for number in moved] for column in columns[:2])
    out_dtypes = [new[number].dtype for number in moved]
    scalars = [jnp.asarray(scale, jnp.float32).reshape(1)]
    results, _ = map_leaves("gnp_perturb", arithmetic, [w, g], [out_dtypes], scalars=scalars)
    for number, leaf in zip(moved, results[0], strict=True):
        new[number] = leaf
    return structure.unflatten(new)
