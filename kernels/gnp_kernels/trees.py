"""Trees of arrays, and the precision that they are computed in."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

type Tree = Any
type Scalar = float | jax.Array
type Shares = Sequence[float] | None
"""What the sum over each leaf is multiplied by, in the order of the leaves; None stands for 1."""


def upcast(x: jax.Array) -> jax.Array:
    """`x` in float32 at least."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def share(shares: Shares, leaf: int) -> float:
    """What the sum over a leaf is multiplied by."""
    return 1.0 if shares is None else shares[leaf]


def total(sums: Sequence[jax.Array], shares: Shares) -> jax.Array:
    """The sum over all leaves, given that over each."""
    shared = (share(shares, leaf) * x for leaf, x in enumerate(sums))
    return sum(shared, start=jnp.zeros((), jnp.float32))


def path_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf as text, its keys separated by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_same_structure(**trees: Tree) -> None:
    """Raises ValueError unless all trees have the structure and the shapes of the first."""
    (first_name, first), *others = trees.items()
    for name, tree in others:
        if jax.tree.structure(tree) != jax.tree.structure(first):
            raise ValueError(
                f"{first_name} and {name} are trees of one structure. Got {jax.tree.structure(first)} and "
                f"{jax.tree.structure(tree)}. Pass trees with the same keys."
            )
        for (path, x), y in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(tree), strict=True):
            if jnp.shape(x) != jnp.shape(y):
                raise ValueError(
                    f"{first_name} and {name} hold arrays of the same shapes. Got {jnp.shape(x)} and {jnp.shape(y)} "
                    f"at {path_name(path) or 'the only one'}. Pass arrays that fit."
                )
