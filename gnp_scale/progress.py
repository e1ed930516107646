"""What a person sees of a run: a progress bar with rate and ETA, or lines where there is no terminal; the summary."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from gnp_scale.runtime import is_main_process

console = Console(stderr=True)
_SHOWN = {"train/loss": "loss", "eval/top1": "test accuracy", "perf/images_per_s": "images/s"}


def announce(message: str) -> None:
    """Says something once, from the main process."""
    if is_main_process():
        console.print(message, highlight=False, soft_wrap=True)


class ProgressBar:
    """A bar on a terminal; elsewhere, such as in a log file, a line for each report. Silent where `shown` is False."""

    def __init__(self, start_step: int, num_steps: int, shown: bool) -> None:
        columns = (
            SpinnerColumn(),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[values]}"),
        )
        self._bar = Progress(*columns, console=console, disable=not (shown and console.is_terminal))
        self._task = self._bar.add_task("train", total=num_steps, completed=start_step, values="compiling")
        self._prints_lines = shown and not console.is_terminal
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
        """Shows the newest of the metrics that people watch."""
        self._latest |= scalars
        self._bar.update(self._task, values=_words(self._latest))
        if self._prints_lines:
            console.print(f"step {step}/{self._num_steps}  {_words(scalars)}", highlight=False)


def _words(scalars: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {scalars[name]:.4g}" for name, label in _SHOWN.items() if name in scalars)


def print_summary(run_dir: Path, step: int, scalars: Mapping[str, float], seconds: float) -> None:
    """A table of what a run came to, where it is, and how to look at it."""
    table = Table(title="finished", show_header=False)
    table.add_row("steps", f"{step:,}")
    table.add_row("test accuracy", f"{scalars['eval/top1']:.2%}")
    table.add_row("test accuracy, top 5", f"{scalars['eval/top5']:.2%}")
    table.add_row("test loss", f"{scalars['eval/loss']:.4f}")
    table.add_row("time since start", f"{seconds:.0f} s")
    table.add_row("run folder", str(run_dir))
    console.print(table)
    tensorboard = Path(sys.executable).with_name("tensorboard")
    console.print(f"watch it: {_short(tensorboard)} --logdir {_short(run_dir)}", highlight=False, soft_wrap=True)


def _short(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
