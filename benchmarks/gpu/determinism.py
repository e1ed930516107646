"""Which programs compute the same bits again: in one process, and in another that compiled them anew."""

import hashlib
import os
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.gpu.sizes import TINY, on_gpu
from benchmarks.gpu.steps import config_of
from benchmarks.gpu.workers import in_turn, wait_for_turn
from benchmarks.tasks import make_batch, noise
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.run import program_cache
from gnp_scale.run.environment import DETERMINISTIC_FLAGS
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

_NUM_STEPS = 3 if TINY else 6
_SMALL = {
    "vit_b": ModelConfig("vit_b", dtype="bfloat16", depth=2),
    "resnet50": ModelConfig("resnet18", dtype="bfloat16"),
}
_DETERMINISTIC, _KEPT = "deterministic operations", "programs kept"


def main(folder: Path) -> None:
    """Prints digests of the state after some penalised steps, for each model, setting and process."""
    print("| model | setting | process | digest | again in it | step, ms |\n" + "|---" * 6 + "|")
    first = [(setting, "1") for setting in ("defaults", _DETERMINISTIC, _KEPT)]
    # These start after the first ones have ended, because one uses the program that the other kept.
    second = [(setting, "2") for setting, _ in first]
    waves = [[("determinism_of", model, *row) for model in _SMALL for row in wave] for wave in (first, second)]
    sys.exit(sum(in_turn(folder, wave, limit_s=100) for wave in waves))


def worker(folder: Path, model: str, setting: str, number: str) -> None:
    """Prints the row of one process."""
    if setting == _DETERMINISTIC:
        os.environ["XLA_FLAGS"] = f"--{DETERMINISTIC_FLAGS[1]}=true"
    if setting == _KEPT:
        program_cache.keep_in(folder / f"programs-{model}")
    config = config_of(model, "bfloat16", "triton" if on_gpu() else "xla")
    if not TINY:
        config = replace(config, model=_SMALL[model], data=noise(64))
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        task = Task.of(config)
        compiled = (
            make_train_step(task).lower(task.abstract_state(), task.abstract_batch(), kind=StepKind.FULL).compile()
        )
        wait_for_turn()
        found = [_train(task, compiled) for _ in range(2)]
    (digest, step_s), (again, _) = found
    print(f"| {model} | {setting} | {number} | {digest} | {digest == again} | {step_s * 1e3:.1f} |", flush=True)


def _train(task: Task, compiled: Any) -> tuple[str, float]:
    """Digest of the state after some steps, and the median seconds of one."""
    state, batch, seconds = task.init_state(), make_batch(task), []
    for _ in range(_NUM_STEPS):
        start_s = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - start_s)
    digest = hashlib.sha256()
    for x in jax.tree.leaves((state.params, state.opt_state, state.batch_stats)):
        digest.update(np.asarray(x).tobytes())
    return digest.hexdigest()[:12], statistics.median(seconds)
