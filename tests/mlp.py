"""The network of `oracles.mlp_loss_and_grad` in JAX, and how its trees are compared.

B: examples, D: inputs, H: hidden channels, K: classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import mlp_batch, mlp_params

from gnp_scale.mesh import BATCH, P, divisible_spec, gather

PARAMS, BATCH_OF_16 = mlp_params(), mlp_batch()
float64 = jax.enable_x64


def mlp_loss(params, batch):
    """Runs on any mesh and without a mesh."""
    whole = jax.tree.map(gather, params)
    hidden_BxH = jnp.tanh(batch["x_BxD"] @ whole["hidden_kernel_DxH"] + whole["hidden_bias_H"][None])
    shape_BxK = batch["label_BxK"].shape
    logits_BxK = jnp.matmul(
        hidden_BxH, whole["head_kernel_HxK"], out_sharding=divisible_spec(P(BATCH, None), shape_BxK)
    )
    log_probs_BxK = jax.nn.log_softmax(logits_BxK + whole["head_bias_K"][None])
    return -jnp.mean(jnp.sum(batch["label_BxK"] * log_probs_BxK, axis=1))


def on_device(leaves, dtype):
    return {name: jnp.asarray(leaf, dtype) for name, leaf in leaves.items()}


def ulps(actual, expected):
    """The largest error of a leaf, in float32 units in the last place of the leaf's largest entry."""
    return max(
        np.abs(np.float64(actual[name]) - leaf).max() / np.spacing(np.float32(np.abs(leaf).max()))
        for name, leaf in expected.items()
    )


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
