"""Blocks whose activations are computed again in the backward pass, `model.remat`."""

from typing import Any

import jax
from flax import nnx


def call(block: Any, x: jax.Array, *rest: Any, remat: bool) -> jax.Array:
    """`block(x, *rest)`; with `remat`, the backward pass gets only `x` and computes the block again.

    Batch statistics are updated once, by the forward pass.
    """
    if not remat:
        return block(x, *rest)
    graph, params, stats = nnx.split(block, nnx.Param, nnx.BatchStat)

    @jax.checkpoint
    def run(params: nnx.State, stats: nnx.State, x: jax.Array) -> tuple[jax.Array, nnx.State]:
        module = nnx.merge(graph, params, stats)
        y = module(x, *rest)
        return y, nnx.state(module, nnx.BatchStat)

    y, stats = run(params, stats, x)
    nnx.update(block, stats)
    return y
