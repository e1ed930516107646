"""A run that is killed and started again, compared bit by bit with one that was not."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.sizes import TINY, on_gpu

CLI = [sys.executable, "-m", "gnp_scale.cli"]
COMMAND = """train configs/cifar.py:vit_s --data.name synthetic --data.synthetic_num_examples 2048 --data.batch_size 64
--optim.warmup_steps 10 --train.num_steps 60 --train.log_every_steps 5 --train.eval_every_steps 30
--checkpoint.every_steps 20"""
MODEL = "--model.name vit_mu --model.depth 1" if TINY else "--model.name vit_ti --model.depth 4"
ON_GPU = "--model.dtype bfloat16 --train.gradient_dtype bfloat16 --train.kernels triton"


def main(folder: Path) -> None:
    """Kills a run after its first checkpoint and lets it finish; exits with 1 unless state and metrics are equal."""
    command = [*COMMAND.split(), *MODEL.split(), *(ON_GPU.split() if on_gpu() else [])]
    runs = folder / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    runs.mkdir(parents=True)
    # Both runs use the same compiled programs: XLA may choose other algorithms when it compiles again.
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(runs / "cache"),
        "JAX_NUM_CPU_DEVICES": "1",
    }

    def start(name: str) -> subprocess.Popen[bytes]:
        with (folder / f"{name}.log").open("a") as log:
            return subprocess.Popen([*CLI, *command, "--run-dir", runs / name], env=env, stdout=log, stderr=log)

    whole = start("whole").wait()
    victim = start("killed")
    while victim.poll() is None and not (runs / "killed" / "checkpoints" / "20").exists():
        time.sleep(0.02)
    victim.kill()
    codes = [whole, victim.wait(), start("killed").wait()]
    hashes = [_fingerprint(runs / name) for name in ("whole", "killed")]
    rows = [_metrics(runs / name) for name in ("whole", "killed")]
    is_equal = hashes[0] == hashes[1] != "" and rows[0] == rows[1]
    print(f"exit codes {codes}; {hashes[0]}; {len(rows[0])} rows of metrics; bitwise equal: {is_equal}")
    if not is_equal:
        print("\n".join((folder / "whole.log").read_text().splitlines()[-12:]))
    sys.exit(0 if is_equal and codes == [0, -9, 0] else 1)


def _fingerprint(run_dir: Path) -> str:
    done = subprocess.run([*CLI, "fingerprint", run_dir], capture_output=True, text=True)
    return done.stdout.strip()


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Without those of time."""
    rows = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]
