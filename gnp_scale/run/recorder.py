"""Writes the record of a run's time from its own thread: the position of this start, again and again, and its end.

A line with an exit code closes the start before it. Nothing here needs JAX or a device.
"""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gnp_scale.exit_codes import Exit, exit_code
from gnp_scale.run import metric_rows
from gnp_scale.run.awake import boot_s
from gnp_scale.run.files import Outage, append_line
from gnp_scale.run.history import RunHistory, Start, parse, read_history
from gnp_scale.run.layout import GOODPUT_FILE
from gnp_scale.run.stages import Stages
from gnp_scale.run.streams import say


class Recorder:
    """While it is entered, appends the position of this start to the record of the run, from its own thread.

    Processes other than the main one also have the history of the run, but write nothing.
    """

    def __init__(self, run_dir: Path, stages: Stages, is_writer: bool) -> None:
        self.stages = stages
        self._path, self._is_writer = run_dir / GOODPUT_FILE, is_writer
        self._outage = Outage(self._path, "the record of the run's time has a gap")
        self._earlier, self._logged_step = _history(run_dir)
        self._entered, self._entered_s = time.time(), boot_s()
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

    @property
    def last_earlier_step(self) -> int:
        """The last step that an earlier start of the run made."""
        return max((start.step for start in self._earlier), default=0)

    def history(self) -> RunHistory:
        """The history of the run until now."""
        return RunHistory((*self._earlier, parse(self._line())))

    def _line(self) -> dict[str, Any]:
        now, now_s = self.stages.now, time.perf_counter()
        return {
            "began": round(self._began, 3),
            "time": round(self._entered + boot_s() - self._entered_s, 3),
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
        return read_history(run_dir).starts, metric_rows.last_step(run_dir)
    except OSError as error:
        say(f"the record of earlier starts cannot be read ({error}): time and goodput are those of this start alone")
        return (), None


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
