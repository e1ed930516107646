"""`python -m benchmarks.gpu PART FOLDER`: one part of `gpu_check.sh`, or a worker of one."""

import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import ceilings, kernels, resume, steps

PARTS: dict[str, Callable[..., None]] = {
    "ceilings": ceilings.main,
    "kernels": kernels.main,
    "kernels_of": kernels.worker,
    "resume": resume.main,
    "steps": steps.main,
    "steps_of": steps.worker,
}

if __name__ == "__main__":
    part, folder, *arguments = sys.argv[1:]
    PARTS[part](Path(folder), *arguments)
