"""What a user sees of a run: a progress bar with rate and ETA, or lines without a terminal; the summary."""

import contextlib
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from gnp_scale.run import messages
from gnp_scale.run.store import Folder, StorePath

_SHOWN = {"train/loss": "loss", "eval/top1": "test accuracy", "perf/images_per_s": "images/s"}


class ProgressBar:
    """A bar on a terminal; a line for each report in a log file, or on a terminal that cannot move its cursor.

    Silent if `shown` is False.
    """

    def __init__(self, start_step: int, num_steps: int, shown: bool) -> None:
        columns = (
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[values]}", markup=False),
        )
        has_cursor = messages.console.is_terminal and not messages.console.is_dumb_terminal
        self._bar = Progress(*columns, console=messages.console, disable=not (shown and has_cursor))
        self._task = self._bar.add_task("train", total=num_steps, completed=start_step, values="compiling")
        self._prints_lines = shown and not has_cursor
        self._num_steps = num_steps
        self._latest: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the newest values of the main metrics."""
        self._latest |= scalars
        self._bar.update(self._task, values=_words(self._latest))
        if self._prints_lines:
            messages.show(f"step {step}/{self._num_steps}  {_words(scalars)}")


def _words(scalars: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {scalars[name]:.4g}" for name, label in _SHOWN.items() if name in scalars)


def print_summary(run_dir: Folder, step: int, scalars: Mapping[str, float], seconds: float) -> None:
    """Prints a table of the results of a run, its folder, and the command to watch it."""
    table = Table(title="finished", show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("steps", f"{step:,}")
    table.add_row("test accuracy", f"{scalars['eval/top1']:.2%}")
    table.add_row("test accuracy, top 5", f"{scalars['eval/top5']:.2%}")
    table.add_row("test loss", f"{scalars['eval/loss']:.4f}")
    table.add_row("time since start", f"{seconds:.0f} s")
    table.add_row("run folder", str(run_dir))
    messages.show(table)
    tensorboard = Path(sys.executable).with_name("tensorboard")
    messages.show(f"watch it: {shlex.join([_short(tensorboard), '--logdir', _short(run_dir)])}")


def _short(path: Folder) -> str:
    if isinstance(path, StorePath):
        return str(path)
    # The working folder may be deleted.
    with contextlib.suppress(OSError, ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
