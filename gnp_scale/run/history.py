"""How a run spent its time, over all its starts: the record in its folder, and its sums.

`goodput.jsonl` only grows. A line gives the position of one start of the run; after a SIGKILL the last line remains.
"""

import contextlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gnp_scale.run.files import read_rows
from gnp_scale.run.layout import GOODPUT_FILE
from gnp_scale.run.stages import Stage
from gnp_scale.run.store import Folder


@dataclass(frozen=True)
class Start:
    """One start of a run, according to its record; times are Unix times."""

    began: float
    time: float
    """When the record was last updated."""
    stage: str
    from_step: int | None
    """The step from which it resumed; None until it is known."""
    step: int
    """The last step of the run that it made."""
    num_rolled_back_steps: int
    """Updates that it undid itself by rollbacks."""
    first_step_s: float | None
    """From its begin until its first update was computed."""
    seconds: Mapping[str, float]
    """Seconds of each stage."""
    exit: int | None = None

    @property
    def num_made_steps(self) -> int:
        """Updates that it made, including those that were undone."""
        return 0 if self.from_step is None else max(0, self.step - self.from_step) + self.num_rolled_back_steps


_NUMBER = int | float
_TYPES: Mapping[str, Any] = {
    "began": _NUMBER,
    "time": _NUMBER,
    "stage": str,
    "from_step": int | None,
    "step": int,
    "num_rolled_back_steps": int,
    "first_step_s": _NUMBER | None,
    "seconds": dict,
    "exit": int | None,
}
"""Of the fields of `Start` in the record."""
_END = 1e11
"""Seconds since 1970: the year 5138."""


@dataclass(frozen=True)
class RunHistory:
    """All starts of a run, and their sums; a running start counts until its last record."""

    starts: tuple[Start, ...]

    @property
    def wall_s(self) -> float:
        """From the beginning of the first start to the last record.

        If the clock was set back between two starts, the time between them counts as 0.
        """
        alive_s = sum(start.time - start.began for start in self.starts)
        return alive_s + sum(max(0.0, new.began - old.time) for old, new in itertools.pairwise(self.starts))

    @property
    def stage_s(self) -> dict[str, float]:
        """Seconds of each stage over all starts, and `down`: seconds outside of all starts."""
        seconds = {str(stage): sum(start.seconds.get(stage, 0.0) for start in self.starts) for stage in Stage}
        return seconds | {"down": max(0.0, self.wall_s - sum(seconds.values()))}

    @property
    def num_lost_steps(self) -> int:
        """Updates that were made and then undone, because a start resumed from an earlier checkpoint."""
        lost, reached = 0, 0
        for start in self.starts:
            if start.from_step is not None:
                lost += max(0, reached - start.from_step) + start.num_rolled_back_steps
                reached = start.step
        return lost

    @property
    def lost_s(self) -> float:
        """Seconds of training in lost steps, estimated from the mean time of a step."""
        return self.stage_s[Stage.TRAIN] * self._lost_share

    @property
    def kept_s(self) -> float:
        """Seconds of training in steps that were kept, and of waiting for their batches, estimated like `lost_s`."""
        return (self.stage_s[Stage.TRAIN] + self.stage_s[Stage.DATA]) * (1 - self._lost_share)

    @property
    def _lost_share(self) -> float:
        num_made_steps = sum(start.num_made_steps for start in self.starts)
        # If the record has a gap, more steps may be lost than it contains.
        return min(1.0, self.num_lost_steps / max(1, num_made_steps))

    @property
    def goodput(self) -> float:
        """Seconds in updates that were kept / seconds since the run first started."""
        in_updates_s = self.stage_s[Stage.TRAIN] - self.lost_s
        # The clock's seconds since 1970 are rounded, so a short wall time may be too short.
        return min(1.0, in_updates_s / self.wall_s) if self.wall_s else 0.0


def read_history(run_dir: Folder) -> RunHistory:
    """The history of the run in `run_dir` from its record (may be missing). Raises what `read_rows` raises."""
    starts: list[Start] = []
    for row in read_rows(run_dir / GOODPUT_FILE):
        # A line with a missing or wrong field is damaged or from another version.
        with contextlib.suppress(KeyError, TypeError):
            _follow(starts, row)
    return RunHistory(tuple(starts))


def _follow(starts: list[Start], row: Mapping[str, Any]) -> None:
    """Updates `starts` with one more line of the record."""
    if "began" in row:
        start = parse(row)
        if starts and starts[-1].began == start.began:
            # Another process may have written the exit code, between two lines of this start.
            known_exit = starts.pop().exit
            start = start if start.exit is not None else replace(start, exit=known_exit)
        starts.append(start)
    elif starts and "exit" in row:
        starts[-1] = _checked(replace(starts[-1], time=max(starts[-1].time, row["time"]), exit=row["exit"]))
    elif starts and "logged_step" in row:
        # For the previous start: its metrics reach further than its last line here.
        starts[-1] = _checked(replace(starts[-1], step=max(starts[-1].step, row["logged_step"])))


def parse(line: Mapping[str, Any]) -> Start:
    """The start that a line of the record describes.

    Raises: TypeError: a field is missing, or has a value of another kind.
    """
    return _checked(Start(**{name: line[name] for name in _TYPES if name in line}))


def _checked(start: Start) -> Start:
    for name, expected in _TYPES.items():
        if not isinstance(getattr(start, name), expected):
            raise TypeError(f"{name} of a start is {getattr(start, name)!r}")
    if not all(isinstance(seconds, _NUMBER) for seconds in start.seconds.values()):
        raise TypeError(f"seconds of a start are {start.seconds!r}")
    if not all(abs(number) < _END for number in (start.began, start.time, start.step, *start.seconds.values())):
        raise TypeError("a time of a start is none that a calendar has")
    return start
