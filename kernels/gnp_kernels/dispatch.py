"""Chooses the implementation of an operation: the named one, or the first that fits the platform."""

import importlib.util
from typing import Literal

import jax
import jax.numpy as jnp

from gnp_kernels.trees import Tree

type Implementation = Literal["auto", "xla", "pallas", "triton"]

_BY_PREFERENCE: tuple[Implementation, ...] = ("pallas", "triton", "xla")
_PLATFORMS = {"pallas": ("tpu",), "triton": ("cuda", "rocm", "gpu")}
_KERNEL_TYPES = (jnp.float32, jnp.bfloat16)


class UnsupportedError(ValueError):
    """No implementation fits, or the named one does not."""


def choose(op: str, implementation: Implementation, trees: Tree) -> Implementation:
    """The implementation of `op` for `trees`.

    "auto" uses Pallas on TPUs, Triton on GPUs, and plain JAX elsewhere or if these refuse. A named implementation is
    used on every platform, so that a program can be lowered for absent hardware; it is never replaced by another.

    Raises:
        UnsupportedError: the named one, or every one, refuses; the message holds each refusal.
    """
    if implementation != "auto" and implementation not in _BY_PREFERENCE:
        raise UnsupportedError(
            f"An implementation is auto, {', '.join(_BY_PREFERENCE)}. Got {implementation!r}. Name one of those."
        )
    refusals: dict[Implementation, str] = {}
    for name in _BY_PREFERENCE if implementation == "auto" else (implementation,):
        refusal = _platform_refusal(name) if implementation == "auto" else None
        refusal = refusal or _refusal(name, trees)
        if refusal is None:
            return name
        refusals[name] = refusal
    reasons = "; ".join(f"{name}: {refusal}" for name, refusal in refusals.items())
    raise UnsupportedError(f"No implementation of {op} fits. {reasons}. Change what is named there.")


def platform() -> str:
    """The platform for which JAX traces: that of the current mesh if it has one, otherwise of the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else _platform_of_kind(device.device_kind)


def device_kind() -> str:
    """The `jax.Device.device_kind` for which JAX traces, such as "NVIDIA H100 80GB HBM3"."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return (jax.devices()[0] if device is None else device).device_kind


def _platform_of_kind(kind: str) -> str:
    if kind.startswith("TPU"):
        return "tpu"
    return "cpu" if kind == "cpu" else "gpu"


def _platform_refusal(name: str) -> str | None:
    if name not in _PLATFORMS or platform() in _PLATFORMS[name]:
        return None
    return f"runs on {_PLATFORMS[name][0]}, and this is {platform()}"


def _refusal(name: str, trees: Tree) -> str | None:
    if name == "triton" and importlib.util.find_spec("jax_triton") is None:
        return "needs jax-triton (pip install jax-triton)"
    types = {jnp.result_type(x) for x in jax.tree.leaves(trees)}
    known = [t for t in types if (jnp.issubdtype(t, jnp.floating) if name == "xla" else t in _KERNEL_TYPES)]
    strange = sorted(str(t) for t in types - set(known))
    return f"has no arrays of type {', '.join(strange)}" if strange else None
