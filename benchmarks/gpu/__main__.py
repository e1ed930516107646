"""`python -m benchmarks.gpu PART FOLDER`: one part of `gpu_check.sh`, or a worker of one."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.gpu import ceilings, determinism, flags, kernels, resume, steps

PARTS: dict[str, Callable[..., None]] = {
    "ceilings": ceilings.main,
    "determinism": determinism.main,
    "determinism_of": determinism.worker,
    "flags": flags.main,
    "kernels": kernels.main,
    "kernels_of": kernels.worker,
    "resume": resume.main,
    "steps_bfloat16": partial(steps.main, dtype="bfloat16"),
    "steps_float32": partial(steps.main, dtype="float32"),
    "steps_of": steps.worker,
}

if __name__ == "__main__":
    part, folder, *arguments = sys.argv[1:]
    PARTS[part](Path(folder), *arguments)
