"""XLA flags beside its defaults: time of the plain step, memory, and the time to compile."""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from gnp_kernels.timing import interleave, ratio

from benchmarks.gpu.sizes import BATCH_SIZE, MODELS, NUM_ROUNDS, STEPS_AT_ONCE, on_gpu
from benchmarks.gpu.steps import config_of
from benchmarks.tasks import updates
from gnp_scale.config import MeshConfig
from gnp_scale.config.model import AttentionImplementation
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

_DEFAULT = "XLA's defaults"
FLAGS: dict[str, tuple[dict[str, Any], AttentionImplementation]] = {
    _DEFAULT: ({}, "auto"),
    "no command buffers": ({"xla_gpu_enable_command_buffer": ""}, "auto"),
    "latency-hiding scheduler": ({"xla_gpu_enable_latency_hiding_scheduler": True}, "auto"),
    "attention of XLA": ({}, "xla"),
    "deterministic operations": ({"xla_gpu_exclude_nondeterministic_ops": True}, "xla"),
}
"""Flags and the attention of transformers: cuDNN's fails with deterministic operations, see `models/attention.py`."""


def main(folder: Path) -> None:
    """Prints a row for each model and set of flags, as soon as it is known."""
    print("| model | flags | images/s | / defaults | temporary GB | compiled in, s |\n" + "|---" * 6 + "|", flush=True)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for model in MODELS:
            for row in _rows(model):
                print(row, flush=True)


def _rows(model: str) -> Iterator[str]:
    """Beside the defaults, each; later programs use what was tuned for the first ones."""
    calls = {}
    config = config_of(model, "bfloat16", "xla")
    for name, (flags, attention) in FLAGS.items():
        if model.startswith("vit"):
            config = replace(config, model=replace(config.model, attention=attention))
        elif not flags and name != _DEFAULT:
            continue  # Without attention these are the defaults again.
        task, start_s = Task.of(config), time.monotonic()
        lowered = make_train_step(task).lower(task.abstract_state(), task.abstract_batch(), kind=StepKind.PLAIN)
        compiled = lowered.compile(compiler_options=flags if on_gpu() else {})
        compiled_s = time.monotonic() - start_s
        calls[name] = updates(task, {StepKind.PLAIN: compiled}, [StepKind.PLAIN] * STEPS_AT_ONCE)
        seconds = interleave({key: calls[key] for key in (_DEFAULT, name)}, NUM_ROUNDS)
        rate = STEPS_AT_ONCE * BATCH_SIZE / statistics.median(seconds[name])
        temporary_gb = compiled.memory_analysis().temp_size_in_bytes / 1e9
        cells = [model, name, f"{rate:.0f}", ratio(seconds, name, _DEFAULT), f"{temporary_gb:.1f}", f"{compiled_s:.0f}"]
        yield "| " + " | ".join(cells) + " |"
