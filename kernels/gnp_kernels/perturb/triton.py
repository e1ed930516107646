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
    seed: jax.Array | None,
) -> Tree:
    """w + scale * g where `mask` is True; see `api.perturb`."""
    leaves, structure = jax.tree.flatten(params)
    types = [jnp.dtype(w.dtype if dtype is None else dtype) for w in leaves]
    chosen = [place for place, is_chosen in enumerate(jax.tree.leaves(mask)) if is_chosen]
    directions = jax.tree.leaves(grads)
    rows = [(leaves[i], directions[i], triton_leaves.empty(leaves[i].shape, types[i])) for i in chosen]
    scale = jnp.asarray(scale, jnp.float32)
    triton_leaves.call(_perturb, "perturb", rows, scale, seed, tags=chosen, adaptive=adaptive)
    new = [w.astype(t) for w, t in zip(leaves, types, strict=True)]
    for place, (_, _, out) in zip(chosen, rows, strict=True):
        new[place] = out[...]
    return structure.unflatten(new)


@triton.jit
def _perturb(
    leaves,
    scale,
    seed,
    table: tl.constexpr,
    block_size: tl.constexpr,
    is_ragged: tl.constexpr,
    adaptive: tl.constexpr,
):
    pointers, size, program, number, _ = leaf_of(leaves, table)
    i, mask = block_of(size, program, block_size)
    _move(pointers, i, mask, number, scale, seed, adaptive)
    if is_ragged:
        i, mask = rest_of(size, program, block_size)
        _move(pointers, i, mask, number, scale, seed, adaptive)


@triton.jit
def _move(pointers, i, mask, number, scale, seed, adaptive: tl.constexpr):
    w = load(pointers[0], i, mask)
    step = load(pointers[1], i, mask)
    if adaptive:
        step = step * tl.abs(w) * tl.abs(w)
    x = w + tl.load(scale) * step
    if seed is not None and pointers[2].dtype.element_ty == tl.bfloat16:
        x = _stochastic_bfloat16(x, _random_bits(tl.load(seed), number, i))
    store(pointers[2], i, x, mask)


@triton.jit
def _random_bits(seed, leaf, i):
    """See `reference.random_bits`."""
    key = _mixed(seed ^ (leaf.to(tl.uint32) * 0x9E3779B9))
    return _mixed(i.to(tl.uint32) ^ key) >> 16


@triton.jit
def _mixed(x):
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def _stochastic_bfloat16(x, bits):
    """A float32 that is a bfloat16, or not finite; see `reference.stochastic_bfloat16`."""
    raw = x.to(tl.uint32, bitcast=True)
    truncated = ((raw + bits) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where((raw & 0x7F800000) == 0x7F800000, x, truncated)
