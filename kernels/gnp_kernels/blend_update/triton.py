"""Blend and update as a Triton kernel that overwrites parameters and moments."""

import jax
import jax.numpy as jnp
import triton
import triton.language as tl

from gnp_kernels import triton_leaves
from gnp_kernels.blend_update.reference import Coefficients, Options, Updated
from gnp_kernels.trees import Tree, upcast
from gnp_kernels.triton_leaves import block_of, leaf_of, load, rest_of, store, store_part


def blend_update(
    params: Tree, g1: Tree, g2: Tree, moments: tuple[Tree, ...], k: Coefficients, options: Options
) -> Updated:
    """See `api.blend_update`."""
    structure = jax.tree.structure(params)
    written = [[jax.new_ref(upcast(x)) for x in jax.tree.leaves(tree)] for tree in (params, *moments)]
    read = [jax.tree.leaves(tree) for tree in ((g1,) if g2 is None else (g1, g2))]
    copies = []
    if options.copy_dtype is not None:
        copies.append([triton_leaves.empty(w.shape, options.copy_dtype) for w in written[0]])
    sums = triton_leaves.call(
        _blend_update,
        "blend_update",
        list(zip(*written, *read, *copies, strict=True)),
        jnp.stack(k),
        tags=[int(decays) for decays in jax.tree.leaves(options.decay_mask)],
        shares=options.shares,
        num_sums=2,
        rule=options.rule,
        has_g2=g2 is not None,
        has_copy=options.copy_dtype is not None,
    )
    new_params, *new_moments = (structure.unflatten([ref[...] for ref in refs]) for refs in written)
    copy = structure.unflatten([ref[...] for ref in copies[0]]) if copies else None
    return Updated(new_params, tuple(new_moments), copy, *sums)


@triton.jit
def _blend_update(
    leaves,
    coefficients,
    parts,
    table: tl.constexpr,
    block_size: tl.constexpr,
    is_ragged: tl.constexpr,
    rule: tl.constexpr,
    has_g2: tl.constexpr,
    has_copy: tl.constexpr,
):
    pointers, size, program, decays, share = leaf_of(leaves, table)
    k = _loaded(coefficients)
    i, mask = block_of(size, program, block_size)
    steps, params = _update(pointers, i, mask, decays, k, rule, has_g2, has_copy)
    if is_ragged:
        i, mask = rest_of(size, program, block_size)
        others = _update(pointers, i, mask, decays, k, rule, has_g2, has_copy)
        steps, params = steps + others[0], params + others[1]
    store_part(parts, 0, share * steps)
    store_part(parts, 1, share * params)


@triton.jit
def _loaded(coefficients):
    """The fields of `Coefficients`; divisors become reciprocals, as in XLA."""
    c1 = tl.load(coefficients)
    c2 = tl.load(coefficients + 1)
    learning_rate = tl.load(coefficients + 2)
    mean_factor = tl.div_rn(1.0, tl.load(coefficients + 3))
    square_factor = tl.div_rn(1.0, tl.load(coefficients + 4))
    applies = tl.load(coefficients + 5)
    return c1, c2, learning_rate, mean_factor, square_factor, applies


@triton.jit
def _update(pointers, i, mask, decays, k, rule: tl.constexpr, has_g2: tl.constexpr, has_copy: tl.constexpr):
    """Updates a block, and returns the squared norms of its step and of its new parameters."""
    c1, c2, learning_rate, mean_factor, square_factor, applies = k
    num_moments: tl.constexpr = rule.num_moments
    w = load(pointers[0], i, mask)
    u = c1 * load(pointers[1 + num_moments], i, mask)
    if has_g2:
        u = tl.where(c2 == 0, u, u + c2 * load(pointers[2 + num_moments], i, mask))
    direction = u
    if num_moments == 1:
        direction = _momentum(pointers, i, mask, u, applies, rule)
    if num_moments == 2:
        direction = _adamw(pointers, i, mask, u, mean_factor, square_factor, applies, rule)
    if rule.weight_decay != 0:
        direction = tl.where(decays != 0, direction + rule.weight_decay * w, direction)
    step = tl.where(applies == 0, 0.0, learning_rate * direction)
    w = w - step
    store(pointers[0], i, w, mask)
    if has_copy:
        store(pointers[len(pointers) - 1], i, w, mask)
    return tl.sum(tl.where(mask, step * step, 0.0)), tl.sum(tl.where(mask, w * w, 0.0))


@triton.jit
def _momentum(pointers, i, mask, u, applies, rule: tl.constexpr):
    before = load(pointers[1], i, mask)
    m = u + rule.momentum * before
    store(pointers[1], i, tl.where(applies == 0, before, m), mask)
    return u + rule.momentum * m if rule.nesterov else m


@triton.jit
def _adamw(pointers, i, mask, u, mean_factor, square_factor, applies, rule: tl.constexpr):
    m_before = load(pointers[1], i, mask)
    v_before = load(pointers[2], i, mask)
    m = (1 - rule.b1) * u + rule.b1 * m_before
    v = (1 - rule.b2) * (u * u) + rule.b2 * v_before
    store(pointers[1], i, tl.where(applies == 0, m_before, m), mask)
    store(pointers[2], i, tl.where(applies == 0, v_before, v), mask)
    return tl.div_rn(mean_factor * m, tl.sqrt_rn(square_factor * v) + rule.eps)
