"""Writes metrics into a run folder: `metrics.jsonl` and TensorBoard, with the same names and numbers.

Each line of `metrics.jsonl` is the JSON object of one step, `{"step": 20, "train/loss": 0.5, ...}`. JSON has no
non-finite numbers, so they are the strings "nan", "inf" or "-inf": `float(value)` reads them all.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnp_scale.config import ConfigError
from gnp_scale.run.files import RecordFile, append_line, replace_file
from gnp_scale.run.layout import METRICS_FILE
from gnp_scale.run.metric_rows import decoded, writable
from gnp_scale.run.store import Folder
from gnp_scale.run.streams import say

if TYPE_CHECKING:
    from gnp_scale.monitoring.tensorboard import TensorBoard

DAMAGED_FILE = "metrics.jsonl.damaged"
"""File for unreadable lines: bytes that a power cut or a full disk has left."""

# A line also begins where half of another one, or a block of zeros, ends without a line break.
_BOUNDARY = re.compile(rb'(?<=\n)|(?=\{"step": )')

type _Line = tuple[bytes, dict[str, float] | None]
"""A line, and its row; the row is None if the line is damaged or incomplete."""


def read_metrics(run_dir: Folder) -> list[dict[str, float]]:
    """The logged steps of a run, in order; unreadable lines, such as incomplete ones, are ignored."""
    path = run_dir / METRICS_FILE
    return [row for _, row in _lines(path.read_bytes() if path.exists() else b"") if row is not None]


class MetricWriter:
    """Writes metrics into `run_dir` from the process with `is_writer`; does nothing in the others.

    A run that resumes at `start_step` first removes the lines of later steps, which it will repeat. A disk that becomes
    full or fails does not end the run; see `RecordFile`.

    Raises:
        ConfigError: `metrics.jsonl` cannot be read.
    """

    def __init__(self, run_dir: Path, is_writer: bool, start_step: int) -> None:
        self.board: TensorBoard | None = None
        if not is_writer:
            return
        path = run_dir / METRICS_FILE
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            start, last = _keep_until(path, start_step)
        except OSError as error:
            raise ConfigError(f"{path} cannot be used ({error.strerror}): make it readable and writable") from error
        with _absent("boto3", "google.cloud.storage"):
            # tensorboardX imports these clients where they are installed: it would take 0.75 s in place of 0.02.
            from gnp_scale.monitoring import tensorboard

        self._last_row = _decode(last) if last else {}
        self._file = RecordFile(path, start, last)
        self.board = tensorboard.TensorBoard(run_dir, start_step)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Logs `scalars` at `step`, which never decreases; further scalars of the last step are added to its line."""
        if self.board is None:
            return
        last_step = self._last_row.get("step", -1)
        assert step >= last_step, f"step {step} after step {last_step}"
        values = {name: float(value) for name, value in scalars.items()}
        if step > last_step:
            self._last_row = {"step": step, **values}
            self._file.append(_encode(self._last_row))
        else:
            self._last_row |= values
            self._file.amend(_encode(self._last_row))
        self.board.scalars(step, scalars)

    def sync(self) -> None:
        """Waits until the disk has the written lines: losing a machine after a save must not lose lines before the
        save.
        """
        if self.board is not None:
            self._file.sync()
            self.board.sync()

    def __enter__(self) -> "MetricWriter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.board is not None:
            self._file.close()
            self.board.close()


def _encode(row: Mapping[str, float]) -> bytes:
    return json.dumps(writable(row), allow_nan=False).encode() + b"\n"


def _decode(line: bytes) -> dict[str, float]:
    return decoded(json.loads(line))


def _lines(data: bytes) -> Iterator[_Line]:
    for line in _BOUNDARY.split(data):
        try:
            yield line, _decode(line)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            if line:
                yield line, None


def _keep_until(path: Path, start_step: int) -> tuple[int, bytes]:
    """Where the line of the newest step up to `start_step` begins in the file, and that line; (0, b"") without one.

    Damaged lines are moved to another file, so that damage does not prevent a start.
    """
    lines = list(_lines(path.read_bytes() if path.exists() else b""))
    num_damaged = sum(row is None for _, row in lines)
    if num_damaged:
        lines = _without_damage(path, lines, num_damaged)
    kept = [number for number, (_, row) in enumerate(lines) if row is not None and row["step"] <= start_step]
    if not kept:
        return 0, b""
    return sum(len(line) for line, _ in lines[: kept[-1]]), _ended(lines[kept[-1]][0])


def _without_damage(path: Path, lines: list[_Line], num_damaged: int) -> list[_Line]:
    whole: list[_Line] = [(_ended(line), row) for line, row in lines if row is not None]
    aside = path.with_name(DAMAGED_FILE)
    try:
        append_line(aside, b"".join(_ended(line) for line, row in lines if row is None).removesuffix(b"\n"))
        replace_file(path, b"".join(line for line, _ in whole))
    except OSError as error:
        # For example on a full disk: readers of the file ignore them.
        say(f"damaged lines of {path} ({num_damaged}) cannot be moved to {aside.name} ({error.strerror})")
        return lines
    say(f"damaged lines of {path} ({num_damaged}) are in {aside.name} now")
    return whole


def _ended(line: bytes) -> bytes:
    return line if line.endswith(b"\n") else line + b"\n"


@contextlib.contextmanager
def _absent(*modules: str) -> Iterator[None]:
    """Imports find none of `modules`, unless it is loaded already (then whoever needs it has it)."""
    hidden = set(modules) - sys.modules.keys()
    not_there: Any = None
    sys.modules.update(dict.fromkeys(hidden, not_there))
    try:
        yield
    finally:
        for module in hidden:
            del sys.modules[module]
