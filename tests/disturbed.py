"""A run of a few seconds with faults on request, and the disturbances from outside.

`GNP_SCALE_TEST_FAULTS` names the faults that its process arms, separated by commas. The run rolls back once if its
recipe is `diverges`.
"""

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from faults import DIGITS, poison, read_metrics

from gnp_scale.chaos.local_processes import LocalJob
from gnp_scale.checkpoint import writer
from gnp_scale.checkpoint.store import Store, Write
from gnp_scale.config import CheckpointConfig, Config, DivergenceConfig, TrainConfig
from gnp_scale.exit_codes import Exit
from gnp_scale.run import folder_lock
from gnp_scale.run.stages import Stage, Stages

VARIABLE = "GNP_SCALE_TEST_FAULTS"
NUM_STEPS = 24
BAD_STEP = 14
STEP_S = 0.05
"""The minimum time of a step, so that something can happen between steps."""


def steady() -> Config:
    """The undisturbed run."""
    for name in filter(None, os.environ.get(VARIABLE, "").split(",")):
        FAULTS[name]()
    # A second start waits for the lock; in a test it need not wait long.
    folder_lock._WAIT_S = 1.0
    writer.FIRST_WAIT_S = 0.3
    _slow_down()
    return replace(
        DIGITS,
        train=TrainConfig(num_steps=NUM_STEPS, log_every_steps=1, eval_every_steps=9),
        checkpoint=CheckpointConfig(every_steps=4, num_healthy_reports=1, keep_last=3),
    )


def diverges() -> Config:
    """A run that rolls back after `BAD_STEP`."""
    poison(setattr, (BAD_STEP, 3))
    return replace(steady(), divergence=DivergenceConfig("rollback", max_rollbacks=9))


def _slow_down() -> None:
    enter = Stages.enter

    @contextlib.contextmanager
    def enter_slowly(self: Stages, stage: Stage, step: int) -> Iterator[None]:
        if stage == Stage.DATA:
            time.sleep(STEP_S)
        with enter(self, stage, step):
            yield

    Stages.enter = enter_slowly


def _replace_write(attempt: Callable[[int, Write], object]) -> None:
    write, numbers = Store.write, iter(range(1, 1000))

    class Response:
        def __init__(self, number: int, real: Write) -> None:
            self.number, self.real = number, real

        def result(self) -> None:
            self.real.join()
            attempt(self.number, self.real)
            if self.real.error is not None:
                raise self.real.error

    def replaced(self: Store, *arguments: object) -> Write:
        return Write(Response(next(numbers), write(self, *arguments)))

    Store.write = replaced


def _slow_write() -> None:
    _replace_write(lambda number, real: time.sleep(3.0) if number == 2 else None)


def _failing_store() -> None:
    def fail(number: int, real: Write) -> None:
        if number in (1, 3):
            raise OSError("the store does not answer")

    _replace_write(fail)


def _no_large_files() -> None:
    """Like a full disk that accepts the rows of metrics but no checkpoint; it lasts as long as this process."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))


FAULTS = {"slow write": _slow_write, "failing store": _failing_store, "no large files": _no_large_files}


@dataclass(frozen=True)
class Moment:
    """A run on which a disturbance acts."""

    job: LocalJob
    run_dir: Path
    rng: random.Random
    start_again: Callable[[], LocalJob]

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to one process or to all."""
        processes = self.job.processes
        for process in self.rng.choice([processes, [self.rng.choice(processes)]]):
            if process.poll() is None:
                process.send_signal(number)


def _suspend(moment: Moment) -> None:
    moment.signal(signal.SIGSTOP)
    time.sleep(moment.rng.choice([0.5, 3.0]))
    for process in moment.job.processes:
        process.send_signal(signal.SIGCONT)


def _second_start(moment: Moment) -> None:
    codes = moment.start_again().exit_codes()
    assert set(codes) in ({Exit.WRONG_CONFIG}, {Exit.FINISHED}, {Exit.PREEMPTED}), codes


def _evaluate(moment: Moment) -> None:
    command = [sys.executable, "-m", "gnp_scale.cli", "eval", str(moment.run_dir)]
    code = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    assert code.returncode in (Exit.FINISHED, Exit.WRONG_CONFIG), code.stderr


def _cut_line(moment: Moment) -> None:
    """Leaves an incomplete line of a step that is not saved, as a kill during a write does."""
    if not _stops_unfinished(moment):
        return
    with (moment.run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 23, "train/lo')


def _damage_newest_checkpoint(moment: Moment) -> None:
    if not _stops_unfinished(moment):
        return
    steps = sorted(int(path.name) for path in (moment.run_dir / "checkpoints").glob("*") if path.name.isdecimal())
    # With only one checkpoint a damaged store ends the run; another test checks that.
    if len(steps) > 1:
        parts = sorted((moment.run_dir / "checkpoints" / str(steps[-1])).rglob("d/*"), key=lambda p: p.stat().st_size)
        parts[-1].write_bytes(parts[-1].read_bytes()[:50])


def _stops_unfinished(moment: Moment) -> bool:
    """Ends the run; returns whether it has begun and will be started again."""
    moment.signal(signal.SIGTERM)
    return set(moment.job.exit_codes()) != {Exit.FINISHED} and moment.run_dir.exists()


ACTS: dict[str, Callable[[Moment], object]] = {
    "preemption": lambda moment: moment.signal(moment.rng.choice([signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])),
    "kill": lambda moment: moment.signal(signal.SIGKILL),
    "suspension": _suspend,
    "second start": _second_start,
    "evaluation beside it": _evaluate,
    "cut line": _cut_line,
    "damaged checkpoint": _damage_newest_checkpoint,
}
NAMES = (*FAULTS, *ACTS, "rollback")


def reached(run_dir: Path, step: int) -> bool:
    """Whether the run has logged `step`."""
    try:
        rows = read_metrics(run_dir)
    except Exception:  # It may be being written now.
        return False
    return any(row["step"] >= step for row in rows)
