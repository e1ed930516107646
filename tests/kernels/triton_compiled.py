"""The launches of an operation, and the output of Triton's compilers for them, without a GPU."""

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import triton
from gnp_kernels import triton_leaves
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_TYPES = {"float32": "*fp32", "bfloat16": "*bf16"}


class Launch(NamedTuple):
    """The arguments of `triton_call`."""

    kernel: Any
    operands: tuple[Any, ...]
    """Of each parameter that is not a constant: an array, or nested tuples of arrays."""
    constants: dict[str, Any]
    num_programs: int
    num_warps: int
    options: dict[str, Any]
    name: str


def launches(op: Callable[..., Any], *args: Any) -> list[Launch]:
    """The launches of `op` for arguments of these shapes."""
    found = []

    def record(*operands, kernel, out_type, grid, name, num_warps, backend_options, **constants):
        found.append(Launch(kernel, (*operands, *out_type), constants, grid, num_warps, backend_options, name))
        return [jnp.zeros(x.shape, x.dtype) for x in out_type]

    with mock.patch.object(triton_leaves, "triton_call", record):
        jax.eval_shape(op, *args)
    return found


def compiled(launch: Launch, target: str) -> CompiledKernel:
    """As jax-triton compiles it: all pointers are multiples of 16."""
    names = [parameter.name for parameter in launch.kernel.params if not parameter.is_constexpr]
    operands = dict(zip(names, launch.operands, strict=True))
    signature = {name: _types(operand) for name, operand in operands.items()}
    source = ASTSource(
        launch.kernel,
        signature | dict.fromkeys(launch.constants, "constexpr"),
        launch.constants,
        {path: [["tt.divisibility", 16]] for i, name in enumerate(names) for path in _paths(operands[name], (i,))},
    )
    return triton.compile(source, target=TARGETS[target], options={"num_warps": launch.num_warps, **launch.options})


def _types(operand: Any) -> Any:
    return tuple(map(_types, operand)) if isinstance(operand, tuple) else _TYPES[str(operand.dtype)]


def _paths(operand: Any, path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    if isinstance(operand, tuple):
        for i, part in enumerate(operand):
            yield from _paths(part, (*path, i))
    else:
        yield path


class Resources(NamedTuple):
    """Registers of one thread, as the assembler allocates them."""

    num_registers: int
    num_spilled_bytes: int

    def occupancy(self, num_warps: int) -> float:
        """Fraction of the 64 warps of a multiprocessor with 65,536 registers, allocated per warp in units of 256."""
        registers_per_warp = -(-self.num_registers * 32 // 256) * 256
        return min(64 // num_warps, 65536 // (registers_per_warp * num_warps)) * num_warps / 64


def resources(kernel: CompiledKernel) -> Resources:
    """The output of `ptxas -v` of CUDA 12.9, the oldest version that supports this PTX."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.ptx"
        file.write_text(kernel.asm["ptx"])
        (arch,) = re.findall(r"^\.target (\w+)", kernel.asm["ptx"], re.MULTILINE)
        command = [triton.knobs.nvidia.ptxas.path, "-v", f"-arch={arch}", str(file), "-o", f"{folder}/kernel"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (registers,) = re.findall(r"Used (\d+) registers", said)
    ((stores, loads),) = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    return Resources(int(registers), int(stores) + int(loads))
