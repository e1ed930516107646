"""Tokens that are sharded over `tensor` between the layers that shard channels: `model.sequence_parallel`.

Norms, residuals and dropout then work on N / tensor tokens (arXiv 2205.05198, section 4.2.2). Layers that shard heads
or hidden channels gather the tokens of their inputs, and reduce-scatter those of their results (`layers.Dense`).

Shapes: B examples, N tokens, D width.
"""

import jax

from gnp_scale import mesh
from gnp_scale.config import check
from gnp_scale.mesh import TENSOR
from gnp_scale.models.transformer import SHARDED_TOKENS, TOKENS


def shard(x_BxNxD: jax.Array, num_registers: int) -> jax.Array:
    """`x_BxNxD` with its tokens sharded over `tensor`.

    Args:
        x_BxNxD: The input of the blocks.
        num_registers: `model.num_registers`, for the advice of an error.

    Raises:
        ConfigError: the tensor axis of the current mesh does not divide the number of tokens.
    """
    num_tokens, num_shards = x_BxNxD.shape[1], mesh.current_axis_size(TENSOR)
    check(
        num_tokens % num_shards == 0,
        f"model.sequence_parallel shards tokens, and {num_tokens} do not divide over the tensor axis of {num_shards}: "
        f"make model.num_registers {num_registers + -num_tokens % num_shards}, or change model.pool or mesh.tensor",
    )
    return mesh.resharded(x_BxNxD, SHARDED_TOKENS)


def unshard(x_BxNxD: jax.Array) -> jax.Array:
    """`x_BxNxD` with all tokens on each device."""
    return mesh.resharded(x_BxNxD, TOKENS)
