"""Which activations of a block the backward pass gets, and which it computes again: `model.remat`."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from gnp_kernels.dispatch import platform
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core.primitives import conv_general_dilated_p

from gnp_scale.config.model import Remat

ATTENTION, SCATTERED, INPUT = "attention", "scattered", "block_input"
"""The names by which results of attention, reduce-scattered results of products, and inputs of blocks are kept."""
_POLICIES = jax.checkpoint_policies


def _is_product(primitive: Any, *inputs: Any, **parameters: Any) -> bool:
    """Whether it multiplies with a kernel. The products of queries and keys have examples and heads in common."""
    is_dot = _POLICIES.dots_with_no_batch_dims_saveable(primitive, *inputs, **parameters)
    return is_dot or primitive is conv_general_dilated_p


# A scan stores all that the backward pass of its body reads. So it is told what XLA would store of separate blocks:
# results of matrix products and of attention, but none of normalisations or of the GELU.
_NAMED = _POLICIES.save_only_these_names(ATTENTION, SCATTERED)
_KEPT_IN_SCAN = _POLICIES.save_from_both_policies(_POLICIES.dots_saveable, _NAMED)
_KEPT: dict[Remat, Callable[..., Any]] = {
    "block": _POLICIES.nothing_saveable,
    "dots": _POLICIES.save_from_both_policies(_is_product, _NAMED),
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=(),
        names_which_can_be_offloaded=(INPUT,),
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def checkpointed(run: Callable[..., Any], remat: Remat, *, in_scan: bool = False) -> Callable[..., Any]:
    """`run(block, x, *rest)`, whose backward pass gets what `remat` keeps, and computes the rest again.

    "dots" keeps `x` and the results of matrix products, convolutions and attention, "block" only `x`. "offload" moves
    `x` to the memory of the host until the backward pass.

    Args:
        run: What a block computes from its parameters, its input and further arrays.
        remat: `model.remat`.
        in_scan: Whether it is the body of a `jax.lax.scan`, in which XLA cannot undo the recomputation.
    """
    if remat == "none":
        in_scan &= platform() != "cpu"
        return jax.checkpoint(run, prevent_cse=False, policy=_KEPT_IN_SCAN) if in_scan else run

    def named(block: Any, x: jax.Array, *rest: Any) -> Any:
        return run(block, checkpoint_name(x, INPUT), *rest)

    return jax.checkpoint(named, prevent_cse=not in_scan, policy=_KEPT[remat])


def call(block: Any, x: jax.Array, *rest: Any, remat: Remat) -> jax.Array:
    """`block(x, *rest)`, `checkpointed`. Batch statistics are updated once, by the forward pass."""
    if remat == "none":
        return block(x, *rest)
    graph, *states = nnx.split(block, nnx.Param, nnx.BatchStat)

    def run(states: list[nnx.State], x: jax.Array) -> tuple[jax.Array, nnx.State]:
        module = nnx.merge(graph, *states)
        y = module(x, *rest)
        return y, nnx.state(module, nnx.BatchStat)

    y, stats = checkpointed(run, remat)(states, x)
    nnx.update(block, stats)
    return y
