"""Figures of the steps from real compilers, for one accelerator that is not present; they are not measurements.

Command: python -m benchmarks.peers.compiled TARGET MODEL DTYPE [STEP ...]; it prints one JSON object a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import jax

from benchmarks.hardware import Dtype, h100_devices
from benchmarks.launches import launches, memory_bytes
from benchmarks.peers.steps import StepName, make_config, trace
from benchmarks.tpu_estimates import CHIPS, Xla, schedules
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task

TARGETS = ("v5e", "v5p", "h100")
MODELS = {"ViT-B/16": "vit_b", "ResNet-50": "resnet50"}
STEPS: tuple[StepName, ...] = get_args(StepName.__value__)
BATCH_SIZE = 64


@dataclass(frozen=True)
class Figures:
    """The figures of one compiled step on one device."""

    num_kernels: int
    """Fusions and loops on a TPU, launches on a GPU."""
    cycles: int | None
    """The TPU compiler's own estimates, and the bundles of Pallas kernels; the GPU compiler has none."""
    num_bytes: int
    """Bytes read and written in the memory of the device: operands and results of all kernels, and copies on TPUs."""
    temporary_bytes: int
    """Peak of live bytes besides arguments and results."""


def main() -> None:
    """Prints the figures of the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("dtype", choices=get_args(Dtype))
    parser.add_argument("steps", nargs="*", default=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--dump", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    mesh = make_mesh(MeshConfig(), devices(args.target))
    with jax.set_mesh(mesh):
        task = Task.of(make_config(ModelConfig(MODELS[args.model], dtype=args.dtype), BATCH_SIZE))
    for step in args.steps:
        platform = "tpu" if args.target in CHIPS else "cuda"
        figures = figures_of(trace(task, mesh, step).lower(lowering_platforms=(platform,)).compile(), args.dump)
        print(json.dumps({"step": step} | asdict(figures)), flush=True)


def figures(target: str, model: str, dtype: Dtype) -> Iterator[tuple[StepName, Figures]]:
    """The figures of all steps, from a process with the environment of the target's compiler."""
    with tempfile.TemporaryDirectory() as dump:
        # Only transformers have Pallas kernels, whose bundles stand in the notes.
        notes = Path(dump) if MODELS[model].startswith("vit") else None
        environment = CHIPS[target].environment(notes) if target in CHIPS else {"JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-m", "benchmarks.peers.compiled", target, model, dtype, "--dump", dump]
        done = subprocess.run(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True)
    for line in done.stdout.splitlines():
        row = json.loads(line)
        yield row.pop("step"), Figures(**row)


def devices(target: str) -> list[jax.Device]:
    """One device of the target."""
    return CHIPS[target].devices()[:1] if target in CHIPS else h100_devices(1)


def figures_of(compiled: Any, dump: Path) -> Figures:
    """Reads the figures from the text and the analyses of a program, and from the compiler's notes in `dump`."""
    text, temporary_bytes = compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes
    if "estimated_cycles" in text:
        xla = Xla.of(text)
        calls = [line for line in text.splitlines() if "tpu_custom_call" in line]
        num_bundles = {schedule.name: schedule.whole.cycles for schedule in schedules(dump, "block_attention")}
        cycles = xla.cycles + sum(num for line in calls for name, num in num_bundles.items() if name in line)
        return Figures(xla.num_loops + len(calls), cycles, memory_bytes(text), temporary_bytes)
    found = launches(text)
    return Figures(len(found), None, sum(launch.num_bytes for launch in found), temporary_bytes)


if __name__ == "__main__":
    main()
