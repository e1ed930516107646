"""Test arguments for every implementation of `perturb`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp_kernels import testing
from gnp_kernels.trees import Tree


class Case(NamedTuple):
    """One call `perturb(params, grads, scale, **options)`."""

    name: str
    params: Tree
    grads: Tree
    scale: float
    options: dict[str, Any]


def cases() -> list[Case]:
    """All cases."""
    options = {
        "f32": {},
        "to bf16": {"dtype": jnp.bfloat16},
        "adaptive": {"adaptive": True},
        "adaptive to bf16": {"adaptive": True, "dtype": jnp.bfloat16},
    }
    found = []
    for shapes in testing.SHAPES:
        for name, option in options.items():
            for grad in (jnp.float32, jnp.bfloat16):
                w, g = (
                    testing.tree(testing.SHAPES[shapes], jnp.float32, 0),
                    testing.tree(testing.SHAPES[shapes], grad, 1),
                )
                found.append(Case(f"{shapes} {name} {jnp.dtype(grad)}", w, g, 0.05, option))
    w, g = testing.tree(testing.SHAPES["mixed"], jnp.float32, 0), testing.tree(testing.SHAPES["mixed"], jnp.float32, 1)
    mask = jax.tree.unflatten(jax.tree.structure(w), [number % 2 == 0 for number in range(len(w))])
    found += [Case(f"masked {name}", w, g, 0.05, option | {"mask": mask}) for name, option in options.items()]
    found += [Case(f"scale {scale}", w, g, scale, {}) for scale in (0.0, 1e30, float("nan"))]
    return found + [Case(f"strange {name}", *testing.strange_tree(jnp.float32), 0.5, options[name]) for name in options]
