"""`gnp-scale status`: where a run stands and what became of its time, from the files in its folder alone."""

import json
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.goodput import METRICS_FILE, Life, Start, append_interval_s, newest_row, read_life
from gnp_scale.stages import Stage

_ENDED = {
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


def print_status(run_dir: Path) -> None:
    """Prints tables of the state of the run in `run_dir`, which may be running, and of its time.

    Raises:
        ConfigError: the folder holds no run.
    """
    console = Console(highlight=False)
    life = read_life(run_dir)
    console.print(_overview(run_dir, life))
    if life.starts:
        console.print(_times(life), _starts(life))


def _overview(run_dir: Path, life: Life) -> Table:
    try:
        num_steps = json.loads((run_dir / "config.json").read_text())["train"]["num_steps"]
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{run_dir} holds no run ({error}): give the folder of a run") from None
    loss = newest_row(run_dir / METRICS_FILE, "train/loss")
    saved = _newest_checkpoint(run_dir)
    table = Table(title=str(run_dir), show_header=False)
    table.add_row("state", state(life, time.time()))
    table.add_row("step", f"{life.starts[-1].step if life.starts else 0:,} of {num_steps:,}")
    table.add_row("loss", f"{float(loss['train/loss']):.4g} at step {loss['step']:,}" if loss else "not logged yet")
    table.add_row("newest checkpoint", f"step {saved:,}" if saved is not None else "none")
    table.add_row("starts", str(len(life.starts)))
    table.add_row("steps lost", f"{life.num_lost_steps:,} ({life.lost_s:.0f} s)")
    table.add_row("goodput", f"{life.goodput:.1%} of {life.wall_s:,.0f} s")
    return table


def state(life: Life, now: float) -> str:
    """What the run is doing at Unix time `now`, or how its last start ended."""
    if not life.starts:
        return "not started"
    last = life.starts[-1]
    if last.exit is not None:
        return _ENDED.get(Exit(last.exit), f"failed, exit code {last.exit}")
    silent_s = now - last.time
    if silent_s < 3 * append_interval_s(last.time - last.began) + 10:
        return f"running: {last.stage}"
    return f"dead: no sign of life for {silent_s:,.0f} s, last in {last.stage}"


def _newest_checkpoint(run_dir: Path) -> int | None:
    """The highest step among the folders of checkpoints, which get their names once they are whole."""
    folder = run_dir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=None)


def _times(life: Life) -> Table:
    table = Table(title="time of all starts")
    table.add_column("stage")
    table.add_column("seconds", justify="right")
    table.add_column("share", justify="right")
    for name, seconds in life.stage_s.items():
        table.add_row(_STAGES[name], f"{seconds:,.1f}", f"{seconds / life.wall_s:.1%}" if life.wall_s else "")
    return table


def _starts(life: Life) -> Table:
    table = Table(title="starts")
    for column in ("began", "from step", "to step", "first step after", "ended"):
        table.add_column(column, justify="left" if column in ("began", "ended") else "right")
    for start in life.starts:
        table.add_row(*_cells(start, is_last=start is life.starts[-1]))
    return table


def _cells(start: Start, *, is_last: bool) -> tuple[str, ...]:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start.began))
    first = "" if start.first_step_s is None else f"{start.first_step_s:.1f} s"
    killed = "" if is_last else "killed"
    ended = killed if start.exit is None else f"exit code {start.exit}"
    return began, "" if start.from_step is None else f"{start.from_step:,}", f"{start.step:,}", first, ended
