"""XLA's older code for fusions on the CPU: without LLVM's optimizations, a program compiles in half of the time by it.

The newer code gives each fusion a compiler context of its own. XLA takes the choice from `XLA_FLAGS`, for all programs
of a process. For those of one module of tests it goes into the options of each program, which Python has as bytes.
"""

import jax
from jax._src import compiler
from jaxlib.xla_client import CompileOptions

OPTION = "xla_cpu_disable_new_fusion_emitters"
FLAG = f"--xla_backend_extra_options={OPTION}"


def _field(number: int, content: bytes) -> bytes:
    """A field of a protocol buffer: its number and its length, of seven bits in a byte, and its bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    high, low = divmod(number, 128)
    return bytes([low | 128]) + _varint(high) if high else bytes([low])


# CompileOptionsProto.executable_build_options.debug_options.xla_backend_extra_options; a field twice is merged.
_ADDED = _field(3, _field(3, _field(500, _field(1, OPTION.encode()) + _field(2, b""))))


def use_where_unoptimized() -> None:
    """Compiles by them what this process compiles while JAX is told to leave most optimizations out."""
    get = compiler.get_compile_options

    def options(*arguments, **values):
        found = get(*arguments, **values)
        if not jax.config.read("jax_disable_most_optimizations"):
            return found
        return CompileOptions.ParseFromString(found.SerializeAsString() + _ADDED)

    compiler.get_compile_options = options
