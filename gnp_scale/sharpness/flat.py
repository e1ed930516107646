"""Trees of parameters as flat vectors that stay on their devices, with the same inner products.

A device's part of the vector is its shards of all leaves, one after the other. A leaf of which several devices hold the
same shard occurs several times, so each copy is divided by the square root of their number. No device sends anything.
"""

import math
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from gnp_scale import mesh
from gnp_scale.mesh import AXES, P

FLAT = P(AXES)
"""How the vectors are sharded."""


class Layout(NamedTuple):
    """Where the leaves are in a vector."""

    structure: Any
    specs: list[P]
    shapes: list[tuple[int, ...]]
    """Of the shards of a device."""
    factors: list[float]
    """Square roots of the numbers of copies."""

    @classmethod
    def of(cls, params: Any) -> Self:
        """The layout of trees that are sharded like `params` on the current mesh."""
        leaves, structure = jax.tree.flatten(params)
        shardings = [jax.typeof(w).sharding for w in leaves]
        shapes = [sharding.shard_shape(w.shape) for sharding, w in zip(shardings, leaves, strict=True)]
        num_devices = mesh.current_axis_size(AXES)
        copies = [num_devices * math.prod(shape) / w.size for shape, w in zip(shapes, leaves, strict=True)]
        return cls(structure, [sharding.spec for sharding in shardings], shapes, [math.sqrt(num) for num in copies])

    def flatten(self, tree: Any) -> jax.Array:
        """The vector of `tree`."""

        def local(leaves: list[jax.Array]) -> jax.Array:
            return jnp.concatenate([x.reshape(-1) / factor for x, factor in zip(leaves, self.factors, strict=True)])

        return mesh.on_shards(local, jax.tree.leaves(tree), out_specs=FLAT)

    def unflatten(self, vector: jax.Array) -> Any:
        """The tree of a vector that `flatten` made, or of a linear combination of such vectors."""
        ends = [sum(map(math.prod, self.shapes[: number + 1])) for number in range(len(self.shapes))]

        def local(vector: jax.Array) -> list[jax.Array]:
            parts = zip(jnp.split(vector, ends[:-1]), self.shapes, self.factors, strict=True)
            return [x.reshape(shape) * factor for x, shape, factor in parts]

        return self.structure.unflatten(mesh.on_shards(local, vector, out_specs=self.specs))
