"""`gnp-scale status`: the state of a run and how it spent its time, only from the files in its folder."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping

from rich.console import Group
from rich.table import Table

from gnp_scale.config import ConfigError
from gnp_scale.config.run import MOST_STEPS
from gnp_scale.exit_codes import Exit
from gnp_scale.run import metric_rows
from gnp_scale.run.console import make_console
from gnp_scale.run.history import RunHistory, Start, read_history
from gnp_scale.run.layout import CHECKPOINTS_FOLDER, CONFIG_FILE, GOODPUT_FILE, committed_folders
from gnp_scale.run.recorder import append_interval_s
from gnp_scale.run.stages import Stage
from gnp_scale.run.store import Folder, StorePath, why_no_run
from gnp_scale.run.store_requests import may_pass, not_now

NOT_STARTED, UNREADABLE = "not started", "unreadable"
"""States of a run in tables of several."""
_ENDED: Mapping[int, str] = {
    Exit.FINISHED: "finished",
    Exit.PREEMPTED: "preempted, saved",
    Exit.HUNG: "hung",
    Exit.DIVERGED: "diverged",
}
_STAGES = {
    Stage.START: "start-up and the rest",
    Stage.RESTORE: "restore",
    Stage.COMPILE: "compile",
    Stage.TRAIN: "training",
    Stage.DATA: "data wait",
    Stage.EVALUATE: "evaluation",
    Stage.SAVE: "save stall",
    "down": "down",
}

_COPY_DELAY_S = 60.0
"""On an object store, the record is copied at intervals."""


def print_status(run_dir: Folder) -> None:
    """Prints the details of the run in `run_dir`; raises what `details` raises."""
    make_console().print(details(run_dir))


def details(run_dir: Folder) -> Group:
    """Tables of the state and the time of the run in `run_dir`, which may be running.

    Raises:
        ConfigError: the folder holds no run, or cannot be read.
        StoreError: its store does not answer now.
    """
    with unreadable_is_config_error(run_dir):
        num_steps, history = num_steps_of(run_dir), read_history(run_dir)
        overview = _overview(run_dir, history, num_steps)
    return Group(overview, _times(history), _starts(history)) if history.starts else Group(overview)


@contextlib.contextmanager
def unreadable_is_config_error(run_dir: Folder) -> Iterator[None]:
    """Turns an OSError from reading `run_dir` into a ConfigError, except if a store may answer later."""
    try:
        yield
    except OSError as error:
        if may_pass(error):
            raise not_now(run_dir, error) from error
        raise ConfigError(
            f"{error.filename or run_dir} cannot be read ({error.strerror}): mend that, or give the folder of a run"
        ) from error


def num_steps_of(run_dir: Folder) -> int:
    """The length of the run in steps, from its configuration.

    Raises:
        ConfigError: the folder holds no run, or its configuration is damaged.
        OSError: it cannot be read.
    """
    path = run_dir / CONFIG_FILE
    try:
        num_steps = int(json.loads(path.read_text())["train"]["num_steps"])
        if not 0 <= num_steps <= MOST_STEPS:
            raise ValueError("its train.num_steps is out of range")
        return num_steps
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{run_dir} holds no run ({why_no_run(run_dir)}): give the folder of a run") from None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        damage = f"it has no {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path} is damaged ({damage}): restore it from a copy, or begin a new run") from error


def _overview(run_dir: Folder, history: RunHistory, num_steps: int) -> Table:
    saved = _newest_checkpoint(run_dir)
    table = Table(title="run", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("folder", str(run_dir))
    table.add_row("state", state_now(run_dir, history))
    table.add_row("step", f"{last_step(run_dir, history):,} of {num_steps:,}")
    table.add_row("loss", _newest_loss(run_dir))
    table.add_row("newest checkpoint", f"step {saved:,}" if saved is not None else "none")
    table.add_row("starts", str(len(history.starts)))
    table.add_row("steps lost", f"{history.num_lost_steps:,} ({history.lost_s:.0f} s)")
    table.add_row("goodput", f"{history.goodput:.1%} of {history.wall_s:,.0f} s")
    return table


def _newest_loss(run_dir: Folder) -> str:
    # If the only pass is perturbed, there is no other loss.
    names = "train/loss", "train/loss_perturbed"
    row = metric_rows.newest(run_dir, *names)
    if row is None:
        return "not logged yet"
    loss = next(row[name] for name in names if name in row)
    return f"{loss:.4g} at step {row['step']:,}"


def state_now(run_dir: Folder, history: RunHistory) -> str:
    """What the run in `run_dir` is doing now, or how its last start ended."""
    if not history.starts and metric_rows.last_step(run_dir) is not None:
        return f"unknown: its record {GOODPUT_FILE} is missing"
    if history.starts and history.starts[-1].exit == Exit.PREEMPTED:
        num_unsaved = history.starts[-1].step - (_newest_checkpoint(run_dir) or 0)
        if num_unsaved > 0:
            return f"preempted, {num_unsaved:,} steps not saved"
    return state(history, time.time(), _COPY_DELAY_S if isinstance(run_dir, StorePath) else 0.0)


def last_step(run_dir: Folder, history: RunHistory) -> int:
    """The last step that was made; the last one in the metrics if the run has no record."""
    if history.starts:
        return history.starts[-1].step
    return metric_rows.last_step(run_dir) or 0


def state(history: RunHistory, now: float, delay_s: float = 0.0) -> str:
    """What the run is doing at Unix time `now`, or how its last start ended; its record may arrive `delay_s` late."""
    if not history.starts:
        return NOT_STARTED
    last = history.starts[-1]
    if last.exit is not None:
        return _ENDED.get(last.exit, f"failed, exit code {last.exit}")
    silent_s = now - last.time
    if silent_s < 3 * append_interval_s(last.time - last.began) + 10 + delay_s:
        return f"running: {last.stage}"
    return f"dead: no sign of life for {silent_s:,.0f} s, last in {last.stage}"


def _newest_checkpoint(run_dir: Folder) -> int | None:
    """The highest step among the complete checkpoints: their folders get their names, or marks, when they are."""
    folder = run_dir / CHECKPOINTS_FOLDER
    if isinstance(folder, StorePath):
        return max(committed_folders(folder.names()), default=None)
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _times(history: RunHistory) -> Table:
    table = Table(title="time of all starts")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in history.stage_s.items():
        table.add_row(_STAGES[name], f"{seconds:,.1f}", f"{seconds / history.wall_s:.1%}" if history.wall_s else "")
    return table


def _starts(history: RunHistory) -> Table:
    table = Table(title="starts")
    for column in ("began", "from step", "to step", "first step after", "ended"):
        table.add_column(column, justify="left" if column in ("began", "ended") else "right")
    for start in history.starts:
        table.add_row(*_cells(start, is_last=start is history.starts[-1]))
    return table


def _cells(start: Start, *, is_last: bool) -> tuple[str, ...]:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.began))
    first = "" if start.first_step_s is None else f"{start.first_step_s:.1f} s"
    killed = "" if is_last else "killed"
    ended = killed if start.exit is None else f"exit code {start.exit}"
    return began, "" if start.from_step is None else f"{start.from_step:,}", f"{start.step:,}", first, ended
