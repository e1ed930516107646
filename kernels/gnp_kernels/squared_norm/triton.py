"""Inner products as Triton kernels: every program writes its part of each sum, and a second launch adds them up."""

import jax
import triton
import triton.language as tl

from gnp_kernels import triton_leaves
from gnp_kernels.squared_norm.reference import Dots
from gnp_kernels.trees import Shares, Tree
from gnp_kernels.triton_leaves import block_of, leaf_of, load, rest_of, store_part


def squared_norm(tree: Tree, weights: Tree, shares: Shares) -> jax.Array:
    """Sum of a^2, or of (w a)^2."""
    trees = (tree,) if weights is None else (tree, weights)
    return triton_leaves.call(_squared_norm, "squared_norm", _rows(*trees), shares=shares, num_sums=1)[0]


def dots(a: Tree, b: Tree, shares: Shares) -> Dots:
    """The three inner products."""
    return Dots(*triton_leaves.call(_dots, "dots", _rows(a, b), shares=shares, num_sums=3))


def _rows(*trees: Tree) -> list[triton_leaves.Row]:
    return list(zip(*map(jax.tree.leaves, trees), strict=True))


@triton.jit
def _squared_norm(leaves, parts, table: tl.constexpr, block_size: tl.constexpr, is_ragged: tl.constexpr):
    pointers, size, program, _, share = leaf_of(leaves, table)
    i, mask = block_of(size, program, block_size)
    a_a = _square(pointers, i, mask)
    if is_ragged:
        i, mask = rest_of(size, program, block_size)
        a_a += _square(pointers, i, mask)
    store_part(parts, 0, share * a_a)


@triton.jit
def _square(pointers, i, mask):
    a = load(pointers[0], i, mask)
    if len(pointers) == 2:
        a = a * load(pointers[1], i, mask)
    return tl.sum(a * a)


@triton.jit
def _dots(leaves, parts, table: tl.constexpr, block_size: tl.constexpr, is_ragged: tl.constexpr):
    pointers, size, program, _, share = leaf_of(leaves, table)
    i, mask = block_of(size, program, block_size)
    a_a, a_b, b_b = _products(pointers, i, mask)
    if is_ragged:
        i, mask = rest_of(size, program, block_size)
        others = _products(pointers, i, mask)
        a_a, a_b, b_b = a_a + others[0], a_b + others[1], b_b + others[2]
    store_part(parts, 0, share * a_a)
    store_part(parts, 1, share * a_b)
    store_part(parts, 2, share * b_b)


@triton.jit
def _products(pointers, i, mask):
    a = load(pointers[0], i, mask)
    b = load(pointers[1], i, mask)
    return tl.sum(a * a), tl.sum(a * b), tl.sum(b * b)
