"""Test arguments for every implementation of `squared_norm` and `dots`."""

from typing import NamedTuple

import jax.numpy as jnp

from gnp_kernels import testing
from gnp_kernels.trees import Tree


class Case(NamedTuple):
    """One call: `squared_norm(a)`, `squared_norm(a, weights=b)` and `dots(a, b)`."""

    name: str
    a: Tree
    b: Tree


def cases() -> list[Case]:
    """All cases."""
    types = {
        "f32": (jnp.float32, jnp.float32),
        "bf16": (jnp.bfloat16, jnp.bfloat16),
        "mix": (jnp.bfloat16, jnp.float32),
    }
    return [
        Case(f"{shapes} {name}", testing.tree(testing.SHAPES[shapes], a, 0), testing.tree(testing.SHAPES[shapes], b, 1))
        for shapes in testing.SHAPES
        for name, (a, b) in types.items()
    ] + [Case("strange", *testing.strange_tree(jnp.float32))]
