"""What a user sees of a run: a progress bar on a terminal, or lines in a file; the summary."""

import contextlib
import shlex
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.file_proxy import FileProxy
from rich.progress import Progress, ProgressColumn, Task
from rich.progress_bar import ProgressBar as Bar
from rich.table import Column, Table
from rich.text import Text

from gnp_scale.run import messages, streams
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.store import Folder, StorePath

_SHOWN = {"train/loss": "loss", "eval/top1": "test accuracy", "perf/images_per_s": "images/s"}
"""What a line in a file has."""
_BY_IMPORTANCE = ("step", "time", "loss", "speed", "accuracy", "images", "mfu")
"""What stands beside the bar. Where the terminal is narrow, the last ones are left out."""
_STYLES = {"step": "progress.download", "time": "progress.remaining"}
_STAGES = {Stage.COMPILE: "compiling", Stage.EVALUATE: "evaluating", Stage.SAVE: "saving"}
_NUMBERS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    (
        "speed",
        "perf/step_ms",
        lambda ms: f"{_short(1000 / ms)} steps/s" if ms <= 1000 else f"{_short(ms / 1000)} s/step",
    ),
    ("images", "perf/images_per_s", lambda rate: f"{_short(rate)} images/s"),
    # If the only pass is perturbed, there is no other loss.
    ("loss", "train/loss_perturbed", lambda loss: f"loss {loss:#.4g}"),
    ("loss", "train/loss", lambda loss: f"loss {loss:#.4g}"),
    ("accuracy", "train/accuracy", lambda share: f"acc {share:.1%}"),
    ("mfu", "perf/mfu", lambda share: f"MFU {share:.0%}"),
)
"""The part of the line, its metric, and its words."""
_SHORTEST_BAR, _LONGEST_BAR, _NARROW = 3, 40, 40
"""Characters; a narrow terminal has the remaining time without its label."""
_SPEED_PERIOD_S = 3600.0
"""The remaining time follows from the last 1000 steps, or from those within this time."""
_ERASE_LINE = "\r\x1b[2K"


class ProgressBar:
    """A bar on a terminal; a line for each report in a file, or on a terminal that is dumb or shall have no colours.

    Silent if `shown` is False.
    """

    def __init__(self, start_step: int, num_steps: int, stages: Stages, shown: bool) -> None:
        self._latest: dict[str, float] = {}
        has_bar = shown and messages.console.is_terminal and not messages.console.is_dumb_terminal
        self._bar = Progress(
            _Line(stages, self._latest),
            console=messages.console,
            disable=not has_bar,
            speed_estimate_period=_SPEED_PERIOD_S,
        )
        self._task = self._bar.add_task("train", total=num_steps, completed=start_step)
        self._shown, self._prints_lines = shown, shown and not has_bar
        self._num_steps = num_steps

    def __enter__(self) -> Self:
        self._bar.start()
        if not self._bar.disable:
            streams.before_last_words = _end_at_once
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        streams.before_last_words = None
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Shows the newest values of the main metrics; an evaluation has a line above the bar."""
        self._latest.update(scalars)
        if self._prints_lines or (self._shown and "eval/top1" in scalars):
            messages.show(f"step {step}/{self._num_steps}  {_words(scalars)}")


def _words(scalars: Mapping[str, float]) -> str:
    return "  ".join(f"{label} {scalars[name]:.4g}" for name, label in _SHOWN.items() if name in scalars)


def _end_at_once() -> None:
    """Erases the bar and draws it no more; called from any thread of a process that exits without leaving blocks."""
    messages.console.quiet = True
    if isinstance(sys.stderr, FileProxy):
        sys.stderr = sys.stderr.rich_proxied_file
        sys.stderr.write(_ERASE_LINE)


class _Line(ProgressColumn):
    """The bar and its numbers.

    It is one line: frames of several lines would erase what native code prints between two of them.
    """

    def __init__(self, stages: Stages, latest: Mapping[str, float]) -> None:
        super().__init__()
        self._stages, self._latest = stages, latest

    def render(self, task: Task) -> Table:
        """The line for the present width of the terminal."""
        # Some terminals begin a new line after the last column.
        width = messages.console.width - 1
        parts = {"step": f"{task.completed:.0f}/{task.total:.0f}", "time": self._time(task)} | _numbers(self._latest)
        step, *others = (Text(parts[name], _STYLES.get(name, "")) for name in _fitting(parts, width))
        numbers = Text("  ").join(others)
        num_left = min(_LONGEST_BAR, width - len(step) - len(numbers) - 2)
        bar = [Bar(task.total, task.completed, num_left)] if num_left >= _SHORTEST_BAR else []
        line = Table.grid(*(Column(no_wrap=True) for _ in (step, *bar, numbers)), padding=(0, 1))
        line.add_row(step, *bar, numbers)
        return line

    def _time(self, task: Task) -> str:
        """What the process does instead of steps, the time that it took, or the estimated time that remains."""
        stage = self._stages.now.stage
        if stage in _STAGES:
            return _STAGES[stage]
        seconds = task.elapsed if task.finished else task.time_remaining
        if seconds is None:
            return ""
        label = "in " if task.finished else "ETA "
        return f"{label * (messages.console.width >= _NARROW)}{timedelta(seconds=int(seconds))}"


def _numbers(latest: Mapping[str, float]) -> dict[str, str]:
    """The known ones, in the order of the line."""
    return {part: show(latest[name]) for part, name, show in _NUMBERS if name in latest}


def _fitting(parts: Mapping[str, str], width: int) -> list[str]:
    """The names of those parts that have room, in the order of the line; the step always stays."""
    kept, used = ["step"], len(parts["step"]) - 1
    for name in _BY_IMPORTANCE[1:]:
        used += len(parts[name]) + 2 if parts.get(name) else 0
        if used > width:
            break
        kept.append(name)
    return [name for name, text in parts.items() if name in kept and text]


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
    messages.show(f"watch it: {shlex.join([_relative(tensorboard), '--logdir', _relative(run_dir)])}")


def _short(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 100 else f"{rate:#.3g}"


def _relative(path: Folder) -> str:
    if isinstance(path, StorePath):
        return str(path)
    # The working folder may be deleted.
    with contextlib.suppress(OSError, ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)
