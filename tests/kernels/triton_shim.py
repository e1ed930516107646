"""Triton's own interpreter instead of a GPU, with NumPy for memory, and without torch.

It only interprets kernels that were imported with TRITON_INTERPRET=1 in the environment.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import triton.language as tl
from gnp_kernels import triton_leaves
from triton.runtime import interpreter

_GUARD = np.full(64, 0xA5, np.uint8)
"""Number of bytes after each array that kernels must not change."""


class Memory:
    """The interface of a torch tensor that the interpreter needs, for a copy of an array in host memory."""

    def __init__(self, x: Any):
        x = np.asarray(x)
        self.dtype = str(x.dtype)
        self._bytes = np.concatenate([np.frombuffer(x.tobytes(), np.uint8), _GUARD])
        self._shape, self._type = x.shape, x.dtype

    def host(self) -> np.ndarray:
        """The current values."""
        assert np.array_equal(self._bytes[-_GUARD.size :], _GUARD), "a kernel wrote beyond the end of an array"
        return np.frombuffer(self._bytes[: -_GUARD.size].tobytes(), self._type).reshape(self._shape)

    def data_ptr(self) -> int:
        return self._bytes.ctypes.data

    def itself(self, *_: Any, **__: Any) -> "Memory":
        """Host memory is also device memory, so a copy by the interpreter needs no work."""
        return self

    untyped_storage = cpu = copy_ = new_empty = set_ = size = stride = storage_offset = itself


@contextlib.contextmanager
def interpreted() -> Iterator[None]:
    """While it is entered, `triton_leaves` runs its kernels in the interpreter."""
    convert = partial(_convert_float, interpreter._convert_float)
    # The interpreter replaces the functions of the language around every call; once is enough, and much faster.
    language = interpreter._patch_lang(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    nothing_more = SimpleNamespace(restore=lambda: None)
    with (
        contextlib.closing(SimpleNamespace(close=language.restore)),
        mock.patch.object(interpreter, "_patch_lang", return_value=nothing_more),
        mock.patch.object(triton_leaves, "triton_call", _triton_call),
        mock.patch.object(interpreter.InterpreterBuilder, "create_inline_asm", _inline_asm, create=True),
        mock.patch.object(interpreter, "_convert_float", convert),
        np.errstate(all="ignore"),
    ):
        yield


def _triton_call(
    *operands: Any, kernel: Any, out_type: list[Any], grid: int, name: str, num_warps: int, backend_options: Any,
    **constants: Any,
) -> list[jax.Array]:  # fmt: skip
    """`jax_triton.triton_call`; outputs are NaN where nothing is written."""
    memory = jax.tree.map(lambda x: Memory(x[...]), operands)
    out = [Memory(np.full(x.shape, np.nan, x.dtype)) for x in out_type]
    kernel[(grid,)](*memory, *out, **constants)
    for x, y in zip(jax.tree.leaves(operands), jax.tree.leaves(memory), strict=True):
        if isinstance(x, jax.Ref):
            x[...] = jnp.asarray(y.host())
    return [jnp.asarray(x.host()) for x in out]


def _inline_asm(_: Any, assembly: str, constraints: str, values: list[Any], *__: Any) -> Any:
    """The only assembly in the kernels is a comment, on a value that it returns unchanged."""
    assert assembly.startswith("//")
    assert constraints == "=r,0"
    return SimpleNamespace(get_result=lambda _: values[0])


def _convert_float(original: Any, x: np.ndarray, source: Any, target: Any, rounding: Any) -> np.ndarray:
    """A GPU rounds to bfloat16 to nearest even (`cvt.rn`); the interpreter truncates."""
    if (source, target) == (tl.float32, tl.bfloat16):
        return x.astype(ml_dtypes.bfloat16).view(np.uint16)
    return original(x, source, target, rounding)
