"""What the runs of a drill leave, and in which of it a killed run differs from the undisturbed one."""

import itertools
import json
from pathlib import Path
from typing import Any

from gnp_scale.checkpoint import fingerprint
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.run.stages import Stage
from gnp_scale.run.store import Folder, StorePath

STAGES_FILE, EXAMPLES_FILE = "stages-{rank}.jsonl", "examples-{rank}.jsonl"
"""Written by `worker.py`, for each process."""


def file_of(folder: Path, name: str, rank: int) -> Path:
    """`STAGES_FILE` or `EXAMPLES_FILE` of a process."""
    return folder / name.format(rank=rank)


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows of one of these files; none before its process has begun."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def visits_of(folder: Path) -> dict[Stage, list[float]]:
    """Seconds of each visit to each stage of a finished run."""
    visits_s: dict[Stage, list[float]] = {stage: [] for stage in Stage}
    for row, after in itertools.pairwise(rows_of(file_of(folder, STAGES_FILE, 0))):
        visits_s[Stage(row["stage"])].append(after["time"] - row["time"])
    return visits_s


def run_of(folder: Path, store: StorePath | None) -> Folder:
    """The run folder of a run whose logs and files are in `folder`."""
    return folder / "run" if store is None else store / folder.name


def compare(folder: Path, whole: Path, num_processes: int, store: StorePath | None = None) -> list[str]:
    """The differences between a killed run and the undisturbed one; there should be none."""
    differences = []
    runs = [run_of(folder, store), run_of(whole, store)]
    if fingerprint(runs[0]) != fingerprint(runs[1]):
        differences.append("the last state differs")
    if _numbers(runs[0]) != _numbers(runs[1]):
        differences.append("steps or numbers in metrics.jsonl differ")
    for rank in range(num_processes):
        seen, expected = (rows_of(file_of(each, EXAMPLES_FILE, rank)) for each in (folder, whole))
        if {(row["step"], row["crc32"]) for row in seen} != {(row["step"], row["crc32"]) for row in expected}:
            differences.append(f"process {rank} has trained on other examples")
    return differences


def _numbers(run_dir: Folder) -> list[dict[str, float]]:
    rows = read_metrics(run_dir)
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]
