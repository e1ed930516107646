"""What runs have reached: their configuration, evaluations, time and state, from the files in their folders."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gnp_scale.checks import check
from gnp_scale.config import Config, ConfigError
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.run.find import find_runs, is_run
from gnp_scale.run.history import read_history
from gnp_scale.run.run_dir import stored_config
from gnp_scale.run.status import NOT_STARTED, UNREADABLE, state_now
from gnp_scale.run.store import Folder, run_folder
from gnp_scale.run.store_requests import may_pass, not_now
from gnp_scale.run.streams import say
from gnp_scale.sweeps.record import Sweep

TOP1, LOSS = "eval/top1", "eval/loss"
FINISHED = "finished"
type Scores = Mapping[str, float]


@dataclass(frozen=True)
class Result:
    """What one run has reached."""

    name: str
    config: Config
    state: str
    evaluations: Mapping[int, Scores]
    """The metrics of each step that was evaluated, in order."""
    step_ms: float | None
    """The median of `perf/step_ms`."""
    hours: float | None
    """Of all starts together."""

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.train.seed

    @property
    def last(self) -> tuple[int, Scores] | None:
        """(step, scores) of the last evaluation; None if there is none."""
        return max(self.evaluations.items(), default=None, key=lambda item: item[0])


def read_result(run_dir: Folder, name: str) -> Result:
    """What the run in `run_dir`, which may be running, has reached; `name` is what tables call it.

    Raises:
        ConfigError: it cannot be read.
        StoreError: its store does not answer.
    """
    config = stored_config(run_dir)
    try:
        rows, history = read_metrics(run_dir), read_history(run_dir)
        state = state_now(run_dir, history).partition(":")[0]
    except OSError as error:
        if may_pass(error):
            raise not_now(run_dir, error) from error
        raise ConfigError(f"{run_dir} cannot be read ({error}): give the folder of a run") from error
    evaluations = {int(row["step"]): row for row in rows if TOP1 in row}
    step_ms = [row["perf/step_ms"] for row in rows if "perf/step_ms" in row]
    hours = sum(start.time - start.began for start in history.starts) / 3600 if history.starts else None
    return Result(name, config, state, evaluations, statistics.median(step_ms) if step_ms else None, hours)


def results_of(folder: Path, sweep: Sweep, states: Mapping[str, str]) -> list[Result]:
    """What each point of the sweep in `folder` has reached, also of those that have not been started.

    `states` has those of points that have just ended: the folder of a run does not record a start that was refused, or
    stopped before it trained.
    """
    found = [_result_of(folder / name, name, sweep.config_of(name)) for name in sweep.points]
    return [replace(result, state=states.get(result.name, result.state)) for result in found]


def _result_of(run_dir: Path, name: str, config: Config) -> Result:
    nothing = Result(name, config, NOT_STARTED, {}, None, None)
    if not is_run(run_dir):
        return nothing
    return _readable(run_dir, name) or replace(nothing, state=UNREADABLE)


def _readable(run_dir: Folder, name: str) -> Result | None:
    """As `read_result`; a run that cannot be read is named, and None, so that the others are reported all the same."""
    try:
        return read_result(run_dir, name)
    except ConfigError as error:
        say(f"{name}: {error}")
        return None


def find_results(arguments: Sequence[str]) -> list[Result]:
    """What the runs in the given folders have reached: each is that of a run, of a sweep, or holds folders of runs.

    A run in a folder that cannot be read is named, and left out.

    Raises:
        ConfigError: one of them is none of these, or cannot be read, or no point of the sweeps has been started.
    """
    results: dict[Folder, Result | None] = {}
    for run_dir, is_named in find_runs([run_folder("RUN", text) for text in arguments]).values():
        place = run_dir.resolve()
        # A run that is given twice counts once.
        if is_run(run_dir) and place not in results:
            results[place] = (read_result if is_named else _readable)(run_dir, str(run_dir))
    readable = [result for result in results.values() if result is not None]
    started = "can be read" if results else "has been started"
    check(bool(readable), f"no run of {', '.join(arguments)} {started}: give other folders, or start the sweep")
    return readable
