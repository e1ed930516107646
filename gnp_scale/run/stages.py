"""Which stage a process is in, at which step and since when, and the seconds that each stage took."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from gnp_scale import PROCESS_START_S


class Stage(StrEnum):
    """What a process is doing; at any time exactly one of these."""

    START = "start"
    """From the first import to the first other stage, and all time that belongs to no other stage."""
    RESTORE = "restore"
    COMPILE = "compile"
    TRAIN = "train"
    DATA = "data"
    """Waiting for a batch."""
    EVALUATE = "evaluate"
    SAVE = "save"
    """Training waits for a save: for the copy to the host, and for an earlier write that is not yet complete; or for a
    profile to be written."""


@dataclass(frozen=True)
class StageRecord:
    """The stage of a process; `since_s` is on the clock of `time.perf_counter`."""

    stage: Stage
    step: int
    since_s: float
    """When this stage was entered, or when a nested stage was left."""
    seconds: Mapping[Stage, float]
    """Seconds of each stage until `since_s`; time in a nested stage is not counted in the outer one."""
    number: int = 0
    """Number of earlier changes of stage: the process with the lowest number is behind the others."""

    @property
    def num_made_steps(self) -> int:
        """Updates that are complete, as far as the host knows, without the current one."""
        return self.step - 1 if self.stage in (Stage.DATA, Stage.TRAIN) and self.step > 0 else self.step

    def total_s(self, now_s: float) -> dict[Stage, float]:
        """Seconds of each stage until `now_s`; their sum is the life of this start."""
        return dict(self.seconds) | {self.stage: self.seconds[self.stage] + now_s - self.since_s}


class Stages:
    """Records the stages of this process in a run, which begins in `Stage.START`.

    One thread enters stages; any other may read `now`, which is replaced as a whole and never changed, or `skip`.
    """

    def __init__(self, began_s: float | None = None) -> None:
        self.began_s = PROCESS_START_S if began_s is None else began_s
        """When the run began, on the clock of `time.perf_counter`: by default with the process."""
        self.now = StageRecord(Stage.START, 0, self.began_s, dict.fromkeys(Stage, 0.0))
        self.before_move: Callable[[], object] = lambda: None
        """Called before a stage ends: it skips a stop that no other thread has noticed yet."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def enter(self, stage: Stage, step: int) -> Iterator[None]:
        """Inside the block, the process is in `stage` at `step` (the last or current update); then in the outer stage
        again.
        """
        outer = self.now
        self._move(stage, step)
        try:
            yield
        finally:
            self._move(outer.stage, self.now.step)

    def _move(self, stage: Stage, step: int) -> None:
        self.before_move()
        with self._lock:
            now_s = time.perf_counter()
            self.now = StageRecord(stage, step, now_s, self.now.total_s(now_s), self.now.number + 1)

    def skip(self, seconds: float) -> None:
        """Excludes the last `seconds` from all stages: this process was stopped meanwhile."""
        with self._lock:
            self.now = replace(self.now, since_s=min(self.now.since_s + seconds, time.perf_counter()))
