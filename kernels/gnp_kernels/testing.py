"""Shared by the cases of the operations and their tests: trees of awkward arrays, and distances in ulps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_kernels.trees import Tree

SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "one vector": ((128,),),
    "one element": ((1,),),
    "scalar": ((),),
    "nothing": ((0,), (3, 0)),
    "no leaves": (),
    "ragged": ((7,), (1001,), (33, 5), (3, 3, 3, 17)),
    "aligned": ((256, 128), (1024,), (3, 3, 64, 128)),
    "mixed": ((768, 64), (10,), (), (2, 4, 8, 16), (0,), (129, 257)),
    "many small": tuple((8 * (1 + i % 5),) for i in range(100)),
}
"""Shapes of the leaves of a tree."""


@functools.cache
def tree(shapes: tuple[tuple[int, ...], ...], dtype: Any, seed: int) -> Tree:
    """A dict of normal draws: the same one for the same arguments."""
    rng = np.random.default_rng(seed)
    leaves = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    return {f"leaf{number:03}": jnp.asarray(x, dtype) for number, x in enumerate(leaves)}


STRANGE_VALUES = (0.0, -0.0, 1e-45, -3e-39, 1.2e-38, 3e38, float("inf"), float("-inf"), float("nan"))
"""Zeros, denormals, the smallest and the largest normal numbers, and non-finite values."""


def strange_tree(dtype: Any) -> tuple[Tree, Tree]:
    """Two trees that contain every pair of `STRANGE_VALUES` at the same position."""
    values = np.asarray(STRANGE_VALUES, np.float32)
    a, b = np.meshgrid(values, values)
    return {"strange": jnp.asarray(a, dtype)}, {"strange": jnp.asarray(b, dtype)}


def ulps(a: Any, b: Any) -> float:
    """Largest |a - b| over all leaves in units of the last place of the larger; NaN equals NaN.

    Subnormals count as zero on hardware that flushes them, so 1 ulp is never less than the smallest normal number.
    """
    return max((_ulps(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)), default=0.0)


def _ulps(a: Any, b: Any) -> float:
    assert jnp.shape(a) == jnp.shape(b), (jnp.shape(a), jnp.shape(b))
    assert jnp.result_type(a) == jnp.result_type(b), (jnp.result_type(a), jnp.result_type(b))
    info = jnp.finfo(jnp.result_type(a))
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if np.all(same):
        return 0.0
    x, y = x[~same], y[~same]
    if not (np.all(np.isfinite(x)) and np.all(np.isfinite(y))):
        return np.inf
    larger = np.maximum(np.maximum(np.abs(x), np.abs(y)), float(info.tiny))
    return float(np.max(np.abs(x - y) / (2.0 ** np.floor(np.log2(larger)) * float(info.eps))))
