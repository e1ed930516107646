"""The rows of `metrics.jsonl`, one for each logged step. Numbers that are not finite are words: JSON has none."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from gnp_scale.run.files import read_rows
from gnp_scale.run.layout import METRICS_FILE
from gnp_scale.run.store import Folder

TAIL_BYTES = 1 << 18
"""Of the file, in which the newest rows are."""
_END = 1 << 31
"""Steps are below it."""


def writable(row: Mapping[str, float]) -> dict[str, float | str]:
    """The row as JSON can have it."""
    return {name: value if math.isfinite(value) else str(value) for name, value in row.items()}


def decoded(row: Mapping[str, Any]) -> dict[str, float]:
    """The row of a line of the file.

    Raises: ValueError, KeyError, TypeError, OverflowError: it is damaged.
    """
    if not isinstance(row["step"], int) or not 0 <= row["step"] < _END:
        raise ValueError("not a number of a step")
    return {name: value if name == "step" else float(value) for name, value in row.items()}


def tail(run_dir: Folder, num_bytes: int = TAIL_BYTES) -> Iterator[dict[str, float]]:
    """The rows in the last `num_bytes` of the file, without those that are damaged. Raises what `read_rows` raises."""
    for row in read_rows(run_dir / METRICS_FILE, num_bytes):
        try:
            yield decoded(row)
        except (ValueError, KeyError, TypeError, OverflowError):
            continue


def newest(run_dir: Folder, *names: str) -> dict[str, float] | None:
    """The newest row with one of `names`; None if there is none."""
    rows = [row for row in tail(run_dir) if not row.keys().isdisjoint(names)]
    return rows[-1] if rows else None


def last_step(run_dir: Folder) -> int | None:
    """The last logged step; None if there is none."""
    row = newest(run_dir, "step")
    return None if row is None else int(row["step"])
