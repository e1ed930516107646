"""Trees of arrays, and the precision of computations on them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

type Tree = Any
type Scalar = float | jax.Array
type Shares = Sequence[float] | None
"""Factors for the sum over each leaf, in the order of the leaves; None means 1."""


def upcast(x: jax.Array) -> jax.Array:
    """`x` in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def share(shares: Shares, leaf: int) -> float:
    """The factor for the sum over a leaf."""
    return 1.0 if shares is None else shares[leaf]


def total(sums: Sequence[jax.Array], shares: Shares) -> jax.Array:
    """The sum over all leaves, from the sum over each leaf."""
    shared = (share(shares, leaf) * x for leaf, x in enumerate(sums))
    return sum(shared, start=jnp.zeros((), jnp.float32))


def path_name(path: tuple[Any, ...]) -> str:
    """The path of a leaf as text, its keys separated by slashes."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_same_keys(**trees: Tree) -> None:
    """Raises ValueError unless all trees have the structure of the first; their leaves may be anything."""
    (first_name, first), *others = trees.items()
    for name, tree in others:
        if jax.tree.structure(tree) != jax.tree.structure(first):
            raise ValueError(
                f"{first_name} and {name} are trees of one structure. Got {jax.tree.structure(first)} and "
                f"{jax.tree.structure(tree)}. Pass trees with the same keys."
            )


def check_same_structure(**trees: Tree) -> None:
    """Raises ValueError unless all trees have the structure and the shapes of the first."""
    (first_name, first), *others = trees.items()
    for name, tree in others:
        check_same_keys(**{first_name: first, name: tree})
        for (path, x), y in zip(jax.tree.leaves_with_path(first), jax.tree.leaves(tree), strict=True):
            if jnp.shape(x) != jnp.shape(y):
                raise ValueError(
                    f"{first_name} and {name} hold arrays of the same shapes. Got {jnp.shape(x)} and {jnp.shape(y)} "
                    f"at {path_name(path) or 'the only one'}. Pass arrays that fit."
                )
