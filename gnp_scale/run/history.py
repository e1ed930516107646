"""How a run spent its time, over all its starts: the record in its folder, and its sums.

`goodput.jsonl` only grows. A line gives the position of one start of the run; after a SIGKILL the last line remains. A
line with an exit code closes the start before it. Nothing here needs JAX or a device.
"""

import contextlib
import itertools
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gnp_scale.exit_codes import Exit, exit_code
from gnp_scale.run.files import Outage, append_line, newest_row, read_rows
from gnp_scale.run.layout import GOODPUT_FILE, METRICS_FILE
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.store import Folder
from gnp_scale.run.streams import say


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


_FIELDS = tuple(field.name for field in fields(Start))


@dataclass(frozen=True)
class RunHistory:
    """All starts of a run, and their sums; a running start is counted until the Unix time `now`."""

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
        num_made_steps = sum(start.num_made_steps for start in self.starts)
        # If the record has a gap, more steps may be lost than it contains.
        return self.stage_s[Stage.TRAIN] * min(1.0, self.num_lost_steps / max(1, num_made_steps))

    @property
    def goodput(self) -> float:
        """Seconds in updates that were kept / seconds since the run first started."""
        kept_s = self.stage_s[Stage.TRAIN] - self.lost_s
        # The clock's seconds since 1970 are rounded, so a short wall time may be too short.
        return min(1.0, kept_s / self.wall_s) if self.wall_s else 0.0


class Recorder:
    """While it is entered, appends the position of this start to the record of the run, from its own thread.

    Processes other than the main one also have the history of the run, but write nothing.
    """

    def __init__(self, run_dir: Path, stages: Stages, is_writer: bool) -> None:
        self.stages = stages
        self._path, self._is_writer = run_dir / GOODPUT_FILE, is_writer
        self._outage = Outage(self._path, "the record of the run's time has a gap")
        self._earlier, self._logged_step = _history(run_dir)
        self._entered, self._entered_s = time.time(), _clock_s()
        self._began = self._entered - (time.perf_counter() - stages.began_s)
        self._from_step: int | None = None
        self._num_rolled_back_steps = 0
        self._first_step_s: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_appending, name="goodput", daemon=True)

    def __enter__(self) -> Self:
        if self._is_writer:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.end(exit_code(error))
        self._stop()

    def _stop(self) -> None:
        self._ended.set()
        if self._is_writer:
            self._thread.join()

    def go_on_from(self, step: int) -> None:
        """Records that the next update is the one after `step`, at the start or after a rollback."""
        if self._from_step is None:
            self._from_step = step
        else:
            self._num_rolled_back_steps += max(0, self.stages.now.num_made_steps - step)

    def first_step_is_computed(self) -> None:
        """Records that the first update of this start is computed."""
        if self._first_step_s is None:
            self._first_step_s = time.perf_counter() - self.stages.began_s

    def end(self, code: Exit) -> None:
        """Closes the record of this start with its position and exit code."""
        self._stop()
        if self._is_writer:
            self._append({**self._line(), "exit": int(code)})

    def history(self) -> RunHistory:
        """The history of the run until now."""
        return RunHistory((*self._earlier, _parse(self._line())))

    def _line(self) -> dict[str, Any]:
        now, now_s = self.stages.now, time.perf_counter()
        return {
            "began": round(self._began, 3),
            "time": round(self._entered + _clock_s() - self._entered_s, 3),
            "stage": now.stage,
            "from_step": self._from_step,
            "step": now.num_made_steps,
            "num_rolled_back_steps": self._num_rolled_back_steps,
            "first_step_s": self._first_step_s and round(self._first_step_s, 3),
            "seconds": {stage: round(seconds, 3) for stage, seconds in now.total_s(now_s).items()},
        }

    def _keep_appending(self) -> None:
        if self._logged_step is not None:
            self._append({"logged_step": self._logged_step})
        interval_s = 0.0
        while not self._ended.wait(interval_s):
            self._append(self._line())
            interval_s = append_interval_s(time.perf_counter() - self.stages.began_s)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            append(self._path, line)
        except OSError as error:
            self._outage.begin(error)
        else:
            self._outage.end("the record goes on")


def _history(run_dir: Path) -> tuple[tuple[Start, ...], int | None]:
    """The earlier starts of a run and its last logged step; empty if they cannot be read."""
    try:
        return read_history(run_dir).starts, (newest_row(run_dir / METRICS_FILE, "step") or {}).get("step")
    except OSError as error:
        say(f"the record of earlier starts cannot be read ({error}): time and goodput are those of this start alone")
        return (), None


def _clock_s() -> float:
    """Seconds on a clock that is never set, and that runs while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def append_interval_s(age_s: float) -> float:
    """Seconds between two lines of a start that is `age_s` old: short at first, at most a minute."""
    return min(60.0, max(1.0, age_s / 100))


def append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, also if another process adds one at the same time.

    Raises: OSError: it could not be written; readers ignore an incomplete line.
    """
    append_line(path, json.dumps(line).encode())


def append_exit(run_dir: Path, code: Exit) -> None:
    """Closes the newest start of the run, in a process that ends it instead of the main one."""
    path = run_dir / GOODPUT_FILE
    try:
        append(path, {"time": round(time.time(), 3), "exit": int(code)})
    except OSError as error:
        Outage(path, "the exit code is not recorded").begin(error)


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
        start = _parse(row)
        if starts and starts[-1].began == start.began:
            # Another process may have written the exit code, between two lines of this start.
            known_exit = starts.pop().exit
            start = start if start.exit is not None else replace(start, exit=known_exit)
        starts.append(start)
    elif starts and "exit" in row:
        starts[-1] = replace(starts[-1], time=max(starts[-1].time, row["time"]), exit=row["exit"])
    elif starts and "logged_step" in row:
        # For the previous start: its metrics reach further than its last line here.
        starts[-1] = replace(starts[-1], step=max(starts[-1].step, row["logged_step"]))


def _parse(line: Mapping[str, Any]) -> Start:
    return Start(**{name: line[name] for name in _FIELDS if name in line})
