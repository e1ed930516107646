"""`gnp-scale status` of several runs: a row for each, or a line of JSON; drawn again while they run."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.run import metric_rows, streams
from gnp_scale.run.console import make_console
from gnp_scale.run.find import find_runs, is_run
from gnp_scale.run.history import read_history
from gnp_scale.run.status import (
    NOT_STARTED,
    UNREADABLE,
    details,
    last_step,
    num_steps_of,
    state_now,
    unreadable_is_config_error,
)
from gnp_scale.run.store import Folder
from gnp_scale.run.store_requests import StoreError

_RUNNING = "running"
_STYLES = {_RUNNING: "green", "finished": "", "preempted": "yellow", NOT_STARTED: "dim"}
"""Of a state; all others are problems."""
_TAILS_BYTES = (metric_rows.TAIL_BYTES, 1 << 24)
"""How much of the end of the metrics is read: more if there is no evaluation in the first part."""
_COLUMNS = ("step", "loss", "accuracy", "goodput", "age")
"""After the run and its state: the accuracy is that of the last evaluation, the age that of the last record."""
_NARROW, _NUM_READERS = 70, 16
_UNITS_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}
"""Of the age of a record: the largest of which it has two."""


@dataclass(frozen=True)
class Row:
    """What one run has reached. None if that is not known; numbers that are not finite are words, as in the metrics."""

    run: str
    state: str
    """The first word of what `status.state_now` says, or `not started`, `no answer`, `unreadable`, `gone`."""
    stage: str | None = None
    """In which it is, or was when it died; None if it has finished, or stopped as it should."""
    exit: int | None = None
    """The exit code of the last start."""
    step: int = 0
    num_steps: int | None = None
    loss: float | str | None = None
    """The newest one."""
    top1: float | str | None = None
    """Of the last evaluation."""
    goodput: float | None = None
    age_s: float | None = None
    """Seconds since the last record of the run."""
    error: str | None = None
    """Why it could not be read."""

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens unless somebody starts it again."""
        return self.state not in (_RUNNING, NOT_STARTED, "no answer")


def show(folders: Sequence[Folder], watch_s: float | None, *, as_json: bool) -> None:
    """Prints the state of the runs that `folders` are or hold, again every `watch_s` seconds until all have ended, or
    nobody reads it.

    A single run is shown with all details.

    Raises:
        ConfigError: one of the folders is no run and holds none, or cannot be read.
        StoreError: a store does not answer; not after the first time.
    """
    is_strict = True
    with _screen(watch_s is not None, as_json=as_json) as draw:
        while True:
            try:
                content, has_ended = _content(folders, is_strict=is_strict, as_json=as_json)
                draw(content)
            except StoreError as error:
                if is_strict or error.is_lasting:
                    raise
                has_ended = False
            if watch_s is None or has_ended or streams.has_no_reader():
                return
            is_strict = False
            time.sleep(watch_s)


def read_row(name: str, run_dir: Folder) -> Row:
    """The row of the run in `run_dir`.

    Raises:
        ConfigError: it cannot be read.
        StoreError: its store does not answer now.
    """
    with unreadable_is_config_error(run_dir):
        if not is_run(run_dir):
            return Row(name, NOT_STARTED)
        num_steps, history = num_steps_of(run_dir), read_history(run_dir)
        loss, top1 = _newest_metrics(run_dir)
        step, state = last_step(run_dir, history), state_now(run_dir, history)
    state = state.partition(":")[0].partition(",")[0]
    row = Row(name, state, step=step, num_steps=num_steps, loss=loss, top1=top1)
    if not history.starts:
        return row
    last = history.starts[-1]
    stage = None if last.exit in (Exit.FINISHED, Exit.PREEMPTED) else last.stage
    age_s = max(0.0, time.time() - last.time)
    return replace(row, stage=stage, exit=last.exit, goodput=history.goodput, age_s=age_s)


def _content(folders: Sequence[Folder], *, is_strict: bool, as_json: bool) -> tuple[RenderableType, bool]:
    """What is shown, and whether all runs have ended."""
    runs = find_runs(folders, is_strict=is_strict)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        rows = list(pool.map(lambda item: _row(*item, is_strict=is_strict), runs.items()))
    has_ended = all(row.has_ended for row in rows)
    if as_json:
        return "\n".join(json.dumps(asdict(row)) for row in rows), has_ended
    if len(rows) == 1 and rows[0].error is None and is_run(folders[0]):
        return details(folders[0]), has_ended
    return _table(rows, make_console().width), has_ended


def _row(name: str, found: tuple[Folder, bool], *, is_strict: bool) -> Row:
    run_dir, is_named = found
    try:
        row = read_row(name, run_dir)
    except (ConfigError, StoreError) as error:
        if is_strict and is_named:
            raise
        return Row(name, UNREADABLE if isinstance(error, ConfigError) else "no answer", error=str(error))
    # A run that was named was there when the watch began. One with a configuration, but no record yet, is starting.
    return replace(row, state="gone") if is_named and row.num_steps is None else row


def _newest_metrics(run_dir: Folder) -> tuple[Any, Any]:
    """The newest loss and the newest accuracy of an evaluation; None if there is none."""
    loss = top1 = None
    for tail_bytes in _TAILS_BYTES:
        for row in map(metric_rows.writable, metric_rows.tail(run_dir, tail_bytes)):
            # If the only pass is perturbed, there is no other loss.
            loss = row.get("train/loss", row.get("train/loss_perturbed", loss))
            top1 = row.get("eval/top1", top1)
        if top1 is not None:
            break
    return loss, top1


def _table(rows: Sequence[Row], width: int) -> RenderableType:
    """A line for each run, and their folder above if it is the same; on a narrow screen, a paragraph for each."""
    errors = [Text(row.error, "red") for row in rows if row.error]
    parents = {row.run.rpartition("/")[0] for row in rows}
    above = [Text(f"{parent}:") for parent in parents if parent] if len(parents) == 1 else []
    if above:
        rows = [replace(row, run=row.run.rpartition("/")[2]) for row in rows]
    if width < _NARROW:
        return Group(*above, *(_paragraph(row) for row in rows), *errors)
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column("run", overflow="fold")
    table.add_column("state", no_wrap=True)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.run, _state(row), *_numbers(row))
    return Group(*above, table, *errors)


def _paragraph(row: Row) -> Text:
    numbers = [f"{name} {number}" for name, number in zip(_COLUMNS, _numbers(row), strict=True) if number]
    return Text.assemble(f"{row.run}: ", _state(row), *(f", {number}" for number in numbers))


def _state(row: Row) -> Text:
    """The state in a few words: how long a dead run has been silent is the age of its record."""
    words = {_RUNNING: f"{_RUNNING}: {row.stage}", "failed": f"failed, code {row.exit}"}
    return Text(words.get(row.state, row.state), _STYLES.get(row.state, "red"))


def _numbers(row: Row) -> tuple[str, ...]:
    """Those of `_COLUMNS`."""
    step = "" if row.num_steps is None else f"{row.step}/{row.num_steps}"
    loss = "" if row.loss is None else f"{float(row.loss):.4g}"
    return step, loss, _percent(row.top1), _percent(row.goodput), _age(row.age_s)


def _percent(share: float | str | None) -> str:
    return "" if share is None else f"{float(share):.1%}"


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    unit = max((unit for unit, size in _UNITS_S.items() if seconds >= 2 * size), key=_UNITS_S.__getitem__, default="s")
    return f"{seconds / _UNITS_S[unit]:.0f} {unit}"


@contextlib.contextmanager
def _screen(is_watching: bool, *, as_json: bool) -> Iterator[Callable[[Any], None]]:
    """Yields a function that draws: over what it drew before if that is watched on a terminal, else below it."""
    console = make_console()
    if as_json:
        yield lambda lines: print(lines, flush=True)
    elif is_watching and console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda content: live.update(content, refresh=True)
    else:
        yield console.print
