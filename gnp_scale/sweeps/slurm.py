"""Submits the points of a sweep as one array job of Slurm."""

import itertools
import subprocess
from collections.abc import Sequence
from pathlib import Path

from gnp_scale.config import ConfigError, check
from gnp_scale.run.files import replace_file
from gnp_scale.sweeps.record import Sweep

SCRIPT = Path("launch/slurm/sweep.sbatch")
FOLDER = "slurm"
_JOB_FILE = "job"


def submit(folder: Path, sweep: Sweep, names: Sequence[str], num_jobs: int | None, options: Sequence[str]) -> int:
    """Submits an array job with a task for each of the points `names`, at most `num_jobs` at a time.

    The number of a task is that of its point in the sweep, from 1, in each submission. Its arguments are in
    `folder/slurm/NUMBER` and its output is in `folder/slurm/NUMBER.log`.

    Args:
        options: for sbatch, such as `--gpus-per-node=8`.

    Returns:
        number of the job.

    Raises:
        ConfigError: Slurm or its script is missing, or refuses the job; or an earlier job of the sweep is in the queue.
    """
    check(SCRIPT.is_file(), f"--slurm needs {SCRIPT}: run the command in the root of a checkout of gnp_scale")
    files = folder / FOLDER
    files.mkdir(exist_ok=True)
    _check_no_job(files / _JOB_FILE)
    numbers = [number for number, name in enumerate(sweep.points, 1) if name in names]
    for number, name in enumerate(sweep.points, 1):
        arguments = sweep.arguments(name, folder)
        check(
            "\n" not in "".join(arguments), f"the arguments of {name} have a line break, which --slurm cannot pass on"
        )
        replace_file(files / str(number), "".join(f"{argument}\n" for argument in arguments).encode())
    throttle = "" if num_jobs is None else f"%{num_jobs}"
    array, output = f"--array={ranges(numbers)}{throttle}", f"--output={files}/%a.log"
    job = _call("sbatch", "--parsable", array, output, *options, str(SCRIPT), str(files))
    job = job.partition(";")[0].strip()
    replace_file(files / _JOB_FILE, f"{job}\n".encode())
    return int(job)


def ranges(numbers: Sequence[int]) -> str:
    """Sorted whole numbers as Slurm writes them, such as 1-3,7."""
    parts = []
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts.append(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}")
    return ",".join(parts)


def _check_no_job(path: Path) -> None:
    """Raises ConfigError if the job whose number is in the file is waiting or running."""
    if not path.exists():
        return
    job = path.read_text().strip()
    try:
        listed = _call("squeue", "--noheader", "--array", "--format=%i", f"--jobs={job}")
    except ConfigError as error:
        # Slurm soon forgets a job that has ended.
        if "Invalid job id" not in str(error):
            raise
        return
    tasks = listed.split()
    check(not tasks, f"{len(tasks)} tasks of job {job} of this sweep are in the queue: wait for them, or scancel {job}")


def _call(*command: str) -> str:
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError:
        raise ConfigError(f"there is no {command[0]} here: --slurm works on a machine that submits jobs") from None
    except subprocess.CalledProcessError as error:
        raise ConfigError(f"{command[0]} refuses: {' '.join(error.stderr.split())}") from error
    return done.stdout
