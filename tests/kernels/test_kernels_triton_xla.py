"""The Triton kernels in a program that XLA compiles for 8 H100: launches, copies and bytes. Nothing is run."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for package in ("jax_triton", "jax_plugins.xla_cuda13"):
    pytest.importorskip(package, reason="needs the GPU compilers: make gpu-compiler")

KERNEL = re.compile(
    r" = (?P<results>.*?) custom-call\((?P<operands>.*?)\), custom_call_target=\"triton_kernel_call_ffi\", "
    r"operand_layout_constraints={(?P<types>.*?)}, [ao]\w+=.*?/gnp_(?P<name>\w+)/triton_kernel_call\""
)
NO_LAUNCH = re.compile(
    r" (?:parameter|get-tuple-element|tuple|bitcast|constant|all-reduce|all-reduce-start|all-reduce-done)\("
    r"|AllocateBuffer|/model/"
)
BYTES_PER_PARAMETER = {
    "ViT-B f32": 4 + 12 + 8 + 32,
    "ViT-B bf16": 2 + 8 + 4 + 30,
    "ResNet-50 bf16": 2 + 8 + 4 + 22,
}
"""Bytes that norm, perturbation, products and update must read and write."""


def compile_case(case, folder):
    """Writes its program. Without the cache, from which programs for absent devices cannot be read."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    script = Path(__file__).with_name("triton_on_h100.py")
    run = subprocess.run([sys.executable, script, folder, case], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]


def num_bytes(types):
    """Of arrays such as "f32[8,16]{1,0}"."""
    found = re.findall(r"(bf16|f32)\[([\d,]*)\]", types)
    return sum({"f32": 4, "bf16": 2}[name] * math.prod(int(n) for n in shape.split(",") if n) for name, shape in found)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [*(pytest.param(name, marks=pytest.mark.long) for name in ("ViT-B f32", "ViT-B bf16")), "ResNet-50 bf16"]
)
def test_a_step_on_8_h100_makes_12_launches_copies_nothing_and_moves_what_it_must(case, tmp_path):
    """8 kernels, and 4 small XLA kernels for scalars; XLA alone makes one or two for each of 150 leaves."""
    compile_case(case, tmp_path)
    text = (tmp_path / case).read_text()
    lines = re.sub(r"/\*.*?\*/", "", text[text.index("\nENTRY") :]).splitlines()
    launches = [line for line in lines if " = " in line and not NO_LAUNCH.search(line)]
    kernels = [found for found in map(KERNEL.search, launches) if found]
    assert [kernel["name"] for kernel in kernels] == [
        *("squared_norm", "squared_norm_totals", "perturb", "dots", "dots_totals"),
        *("blend_update", "blend_update", "blend_update_totals"),
    ]
    assert len(launches) <= 12, launches
    assert not [line for line in launches if " copy(" in line]
    buffers = {line.split()[0] for line in lines if "AllocateBuffer" in line}
    moved = 0
    for kernel in kernels:
        operands = zip(kernel["operands"].split(", "), kernel["types"].split(", "), strict=True)
        moved += num_bytes(kernel["results"]) + sum(num_bytes(t) for name, t in operands if name not in buffers)
    per_parameter = moved / int((tmp_path / f"{case} parameters").read_text())
    # The parts of sums are two numbers per thousand parameters.
    assert BYTES_PER_PARAMETER[case] <= per_parameter <= 1.002 * BYTES_PER_PARAMETER[case]
