"""The perturbation in plain JAX."""

import jax
import jax.numpy as jnp

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

    def moved(w: jax.Array, g: jax.Array, is_chosen: bool) -> jax.Array:
        out = jnp.dtype(w.dtype if dtype is None else dtype)
        if not is_chosen:
            return w.astype(out)
        step = upcast(g) * jnp.abs(upcast(w)) * jnp.abs(upcast(w)) if adaptive else upcast(g)
        return (upcast(w) + scale * step).astype(out)

    return jax.tree.map(moved, params, grads, mask)
