"""Training steps of ViT-B/16 and ResNet-50, plain and penalised, with Triton and with XLA alone."""

import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from gnp_kernels.timing import interleave, ratio

from benchmarks.gpu.ceilings import ceiling
from benchmarks.gpu.sizes import (
    ALPHA,
    BATCH_SIZE,
    CLIP_NORM,
    DECAY,
    IMAGE_SIZE,
    MODELS,
    NUM_CLASSES,
    NUM_ROUNDS,
    STEPS_AT_ONCE,
    TINY,
    R,
    on_gpu,
)
from benchmarks.gpu.step_profile import profile
from benchmarks.gpu.workers import in_turn, wait_for_turn
from benchmarks.hardware import Dtype
from benchmarks.tasks import KINDS, noise, updates
from gnp_scale.config import Config, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.config.run import Kernels
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

_TINY = {"vit_b": "vit_mu", "resnet50": "resnet18"}


def main(folder: Path, dtype: Dtype) -> None:
    """Prints a row for each step and model in one type."""
    columns = "model | dtype | kernels | step | images/s | of ceiling | / plain | / XLA | busy | kernels a step | GB"
    print(f"| {columns} |\n" + "|---" * 11 + "|")
    sys.exit(in_turn(folder, [("steps_of", model, dtype) for model in MODELS], limit_s=200))


def worker(folder: Path, model: str, dtype: Dtype) -> None:
    """Prints the rows of one model in one type: images/s, share of the measured ceiling, ratios, share of its time in
    which the device computes, kernels and memory. `folder` gets a profile of each step."""
    implementations: tuple[Kernels, ...] = ("triton", "xla") if on_gpu() else ("xla",)
    calls = {}
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        with ThreadPoolExecutor(3) as pool:
            for kernels in implementations:
                task = Task.of(config_of(model, dtype, kernels))
                for name, kind in KINDS.items():
                    lowered = make_train_step(task).lower(task.abstract_state(), task.abstract_batch(), kind=kind)
                    calls[kernels, name] = task, kind, pool.submit(lowered.compile)
                    if len(calls) == 1:
                        # The others then find most of their convolutions and products tuned.
                        calls[kernels, name][2].result()
        wait_for_turn()
        # Several steps at a time, as a run makes them: the next one is started while one is computed.
        run = {
            key: updates(task, {kind: job.result()}, [kind] * STEPS_AT_ONCE) for key, (task, kind, job) in calls.items()
        }
        seconds = interleave(run, NUM_ROUNDS)
        for key, (task, kind, job) in calls.items():
            step_s = statistics.median(seconds[key]) / STEPS_AT_ONCE
            share = task.gnp.num_passes(kind) * task.flops_per_pass / step_s / ceiling(folder, "flops_per_s")
            ratios = [ratio(seconds, key, base) for base in ((key[0], "plain"), ("xla", key[1]))]
            temporary_gb = job.result().memory_analysis().temp_size_in_bytes / 1e9
            title = "-".join((model, dtype, *key))
            with tempfile.TemporaryDirectory() as traces:
                found = profile(Path(traces), run[key])
            (folder / f"{title}.txt").write_text(f"{found}\n")
            cells = [model, dtype, *key, f"{BATCH_SIZE / step_s:.0f}", f"{share:.2f}", *ratios]
            cells += [f"{found.busy_s / step_s:.2f}", str(found.num_launches), f"{temporary_gb:.1f}"]
            print("| " + " | ".join(cells) + " |", flush=True)


def config_of(model: str, dtype: Dtype, kernels: Kernels) -> Config:
    """Training of `model` on noise."""
    return Config(
        data=noise(BATCH_SIZE, IMAGE_SIZE, NUM_CLASSES),
        model=ModelConfig(_TINY[model] if TINY else model, dtype=dtype),
        gnp=GnpConfig(r=R, alpha=ALPHA),
        optim=OptimConfig("adamw" if model == "vit_b" else "sgd", clip_norm=CLIP_NORM, weight_decay=DECAY),
        train=TrainConfig(kernels=kernels, gradient_dtype=dtype),
    )
