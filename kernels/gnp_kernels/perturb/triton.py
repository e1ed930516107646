"""The perturbation as a Triton kernel."""

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from gnp_kernels import triton_leaves
from gnp_kernels.trees import Scalar, Tree
from gnp_kernels.triton_leaves import block_of, leaf_of, load, rest_of, store


def perturb(
    params: Tree,
    grads: Tree,
    scale: Scalar,
    dtype: jax.typing.DTypeLike | None,
    adaptive: bool,
    mask: Tree,
) -> Tree:
    """w + scale * g where `mask` is True; see `api.perturb`."""
    leaves, structure = jax.tree.flatten(params)
    types = [jnp.dtype(w.dtype if dtype is None else dtype) for w in leaves]
    chosen = [place for place, is_chosen in enumerate(jax.tree.leaves(mask)) if is_chosen]
    directions = jax.tree.leaves(grads)
    rows = [(leaves[i], directions[i], triton_leaves.empty(leaves[i].shape, types[i])) for i in chosen]
    scale = jnp.asarray(scale, jnp.float32)
    triton_leaves.call(_perturb, "perturb", rows, scale, adaptive=adaptive)
    new = [w.astype(t) for w, t in zip(leaves, types, strict=True)]
    for place, (_, _, out) in zip(chosen, rows, strict=True):
        new[place] = out[...]
    return structure.unflatten(new)


@triton.jit
def _perturb(
    leaves,
    scale,
    table: tl.constexpr,
    block_size: tl.constexpr,
    is_ragged: tl.constexpr,
    adaptive: tl.constexpr,
):
    pointers, size, program, _, _ = leaf_of(leaves, table)
    i, mask = block_of(size, program, block_size)
    _move(pointers, i, mask, scale, adaptive)
    if is_ragged:
        i, mask = rest_of(size, program, block_size)
        _move(pointers, i, mask, scale, adaptive)


@triton.jit
def _move(pointers, i, mask, scale, adaptive: tl.constexpr):
    w = load(pointers[0], i, mask)
    step = load(pointers[1], i, mask)
    if adaptive:
        step = step * tl.abs(w) * tl.abs(w)
    store(pointers[2], i, w + tl.load(scale) * step, mask)
