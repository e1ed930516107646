"""A checksum of each array of a state, the same on any mesh; the array is never gathered.

Stores and file formats check only their own files. These checksums are computed from the arrays in training and
compared with the restored arrays, so they cover everything between.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gnp_kernels.trees import path_name


def checksums(state: Any) -> dict[str, int]:
    """A 32-bit checksum of each array, by its path: the sum over elements i of mix(bits_i ^ mix(i)), modulo 2**32.

    `mix` is a bijection, so one changed element always changes the sum. Other damage is missed once in 2**32. A sum of
    integers does not depend on its order, so it does not depend on mesh, devices and number of processes.
    """
    leaves = jax.tree.leaves_with_path(state)
    names = [path_name(path) for path, _ in leaves]
    values = jax.device_get(_checksums([leaf for _, leaf in leaves]))
    return dict(zip(names, map(int, values), strict=True))


def mismatched(state: Any, expected: Mapping[str, int]) -> list[str]:
    """The arrays of `state` whose checksums differ from `expected`, or that are missing on one side."""
    found = checksums(state)
    return sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def checksum_of_step(step: int) -> int:
    """The checksum of the number of steps, an int32 scalar, without a device."""
    place = np.zeros(1, np.uint32)
    return int(_mix(np.array([step], np.uint32) ^ _mix(place))[0])


@jax.jit
def _checksums(leaves: list[jax.Array]) -> jax.Array:
    """One program for all, so that all processes run the sums between devices in the same order."""
    return jnp.stack([_checksum(leaf) for leaf in leaves])


@jax.jit
def _checksum(x: jax.Array) -> jax.Array:
    """Jitted, so that it is traced once for all arrays of one shape."""
    mixed = _mix(_bits(x) ^ _mix(_places(x.shape)))
    return jnp.sum(mixed, dtype=jnp.uint32)


def _bits(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
    assert unsigned.itemsize <= 4, f"training has no arrays of {x.dtype}"
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)


def _places(shape: tuple[int, ...]) -> jax.Array:
    """The row-major index of each element, modulo 2**32."""
    place = jnp.zeros(shape, jnp.uint32)
    for dim in range(len(shape)):
        stride = math.prod(shape[dim + 1 :]) % 2**32
        place += jax.lax.broadcasted_iota(jnp.uint32, shape, dim) * jnp.uint32(stride)
    return place


def _mix(x: Any) -> Any:
    """The finaliser of MurmurHash3 after an offset (to mix 0 too): each bit of x affects each bit of the result. x is a
    uint32 array of JAX or NumPy.
    """
    x = x + np.uint32(0x9E3779B9)
    x = (x ^ x >> 16) * np.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * np.uint32(0xC2B2AE35)
    return x ^ x >> 16
