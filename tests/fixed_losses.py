"""Losses whose Hessians are known, over fixed examples in parts, on any mesh.

B examples, D inputs; shapes of the network as in `oracles.py`.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from mlp import mlp_loss

from gnp_scale.mesh import BATCH, P, gather, sharding
from gnp_scale.sharpness.objective import Fixed

SPECS = {
    "hidden_kernel_DxH": P("fsdp", "tensor"),
    "hidden_bias_H": P("fsdp"),
    "head_kernel_HxK": P("tensor", "fsdp"),
    "head_bias_K": P(),
}


def mlp_sum(params, shared, part):
    """A label of zeros has the loss 0."""
    shown = {name: jnp.where(part["mask"][:, None] > 0, x, 0) for name, x in part.items() if name != "mask"}
    whole = jax.tree.map(partial(gather, axes=("fsdp", "tensor")), params)
    return mlp_loss(whole, shown) * len(part["mask"])


def placed(leaves, specs):
    return {name: jax.device_put(leaf.astype(np.float32), sharding(specs[name])) for name, leaf in leaves.items()}


def in_parts(arrays, size, num=None):
    """`Fixed` in parts of `size` rows, of which the first `num` count in each."""
    parts = {name: x.reshape(-1, size, *x.shape[1:]) for name, x in arrays.items()}
    num_parts = len(next(iter(parts.values())))
    parts["mask"] = np.broadcast_to(np.arange(size) < (num or size), (num_parts, size))
    specs = {name: P(None, BATCH, *(None,) * (x.ndim - 2)) for name, x in parts.items()}
    return Fixed(None, placed(parts, specs))


def all_free(params):
    return jax.tree.map(lambda _: True, params)


W = np.array([1.0, -2.0, 0.5, 3.0])


def quadratic_sum(params, shared, part):
    """Of |A_b w|^2 / 2."""
    y_BxD = jnp.einsum("bij,j->bi", part["a"], params["w"])
    return jnp.sum(jnp.where(part["mask"][:, None] > 0, y_BxD**2, 0.0)) / 2


def closed_form(matrices_BxDxD, w, radii):
    """(L, |g|, r |g| + r^2 g^T H g / (2 |g|^2)) of the mean loss."""
    hessian = np.mean([a.T @ a for a in matrices_BxDxD], axis=0)
    grad = hessian @ w
    curvature = grad @ hessian @ grad / (grad @ grad)
    return w @ hessian @ w / 2, np.linalg.norm(grad), [r * np.linalg.norm(grad) + r**2 / 2 * curvature for r in radii]


def quadratic(num_groups, num):
    """Random matrices in groups of 8 rows, of which `num` count."""
    draws = np.random.default_rng(1).standard_normal((num_groups * 8, 4, 4))
    return draws.reshape(num_groups, 8, 4, 4)[:, :num], in_parts({"a": draws}, 8, num)
