"""Metrics on their way from the device to a run folder: `metrics.jsonl` and TensorBoard, same names and numbers.

Each line of `metrics.jsonl` is the JSON object of one step, `{"step": 20, "train/loss": 0.5, ...}`. JSON has no number
for a value that is not finite, so it stands there as the string "nan", "inf" or "-inf": `float(value)` reads them all.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

from gnp_scale.config import ConfigError
from gnp_scale.tensorboard import TensorBoard

METRICS_FILE = "metrics.jsonl"


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    """The logged steps of a run, in order; a last line that a kill left half-written is not among them.

    Raises:
        ConfigError: a line before the last is not the JSON object of a step.
    """
    path = run_dir / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_decode(line))
        except (ValueError, AttributeError) as error:
            if number < len(lines):
                raise ConfigError(f"{path}, line {number}, is damaged ({error}): repair or remove that line") from error
    return rows


class MetricWriter:
    """Writes metrics into `run_dir` from the process for which `is_writer` holds; on the others it does nothing.

    A run that starts again at `start_step` first drops the lines of later steps, which it is about to repeat.
    """

    def __init__(self, run_dir: Path, is_writer: bool, start_step: int) -> None:
        self.board: TensorBoard | None = None
        if not is_writer:
            return
        run_dir.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_metrics(run_dir) if row["step"] <= start_step]
        _replace(run_dir / METRICS_FILE, rows)
        self._file = (run_dir / METRICS_FILE).open("r+b", buffering=0)
        self._last_row = rows[-1] if rows else {"step": -1}
        self._last_row_start = self._file.seek(0, os.SEEK_END) - len(_encode(rows[-1]) if rows else b"")
        self.board = TensorBoard(run_dir, start_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs `scalars` at `step`, which never falls; what is added to the last step joins the line it has."""
        if self.board is None:
            return
        assert step >= self._last_row["step"], f"step {step} after step {self._last_row['step']}"
        if step > self._last_row["step"]:
            self._last_row = {"step": step}
            self._last_row_start = self._file.seek(0, os.SEEK_END)
        self._last_row |= {name: float(value) for name, value in scalars.items()}
        self._file.seek(self._last_row_start)
        self._file.write(_encode(self._last_row))
        self._file.truncate()
        self.board.scalars(step, scalars)

    def sync(self) -> None:
        """Waits until the disk has what is written: who loses a machine after a save must not lose lines before it."""
        if self.board is not None:
            os.fsync(self._file)

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.board is not None:
            self._file.close()
            self.board.close()


def _encode(row: Mapping[str, float]) -> bytes:
    writable = {name: value if math.isfinite(value) else str(value) for name, value in row.items()}
    return json.dumps(writable, allow_nan=False).encode() + b"\n"


def _decode(line: bytes) -> dict[str, float]:
    row = {name: float(value) if isinstance(value, str) else value for name, value in json.loads(line).items()}
    if "step" not in row:
        raise ValueError("it names no step")
    return row


def _replace(path: Path, rows: list[dict[str, float]]) -> None:
    """Makes `rows` the content of `path`, which a kill leaves either old or new."""
    new = path.with_suffix(".new")
    with new.open("wb") as file:
        file.writelines(_encode(row) for row in rows)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
