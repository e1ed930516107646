"""Rollbacks after a divergence, recorded in `rollbacks.json` in the run folder.

With these records, the configuration, the step and the file determine the batch and the kind of every step. So a run
that is killed later resumes exactly.
"""

import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from gnp_scale.config import Config, ConfigError, check
from gnp_scale.data.pipeline import Batches
from gnp_scale.gnp import StepKind
from gnp_scale.gnp.settings import count_reuses
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import ROLLBACKS_FILE
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.store import Folder, StorePath
from gnp_scale.run.store_requests import may_pass, not_now

_MOST_BATCHES = 2**60
"""Of batches and steps: sums of them fit into 64 bits."""


@dataclass(frozen=True)
class Rollback:
    """One return from `bad_step` to the state after `good_step`; it holds for all later steps."""

    good_step: int
    bad_step: int
    num_passed_batches: int
    """Added to the index of a step's batch in the stream, so that batches are not repeated after rollbacks."""
    plain_until: int
    """Last step without the penalty; `good_step` if there is none."""


class Rollbacks:
    """All rollbacks of a run, in the order in which they happened; the same in every process.

    Raises:
        ConfigError: their file is damaged or cannot be read, or `config` asks for rollbacks that are impossible.
    """

    def __init__(self, run_dir: Folder, config: Config) -> None:
        _check(config)
        self._path, self._config, self._gnp = run_dir / ROLLBACKS_FILE, config.divergence, config.gnp
        # Another host's file system may still show an older file.
        text = broadcast(_read(self._path) if is_main_process() else "")
        try:
            self._records = [_record(fields) for fields in json.loads(text)]
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self._path} is damaged ({error}): repair it, or begin a new run") from error

    @property
    def may_roll_back(self) -> bool:
        """Whether the run would go back if it diverged now."""
        return self._config.policy == "rollback" and len(self._records) < self._config.max_rollbacks

    def add(self, good_step: int, bad_step: int) -> str:
        """Records that the run goes back from `bad_step` to `good_step`; returns a description.

        Raises:
            ConfigError: the record cannot be written.
        """
        passed = int(self._passed_batches(bad_step)[good_step])
        if self._config.pass_bad_batches:
            passed = int(self._passed_batches(bad_step)[bad_step - 1]) + bad_step - good_step
        record = Rollback(good_step, bad_step, passed, good_step + self._config.plain_steps)
        self._records.append(record)
        if is_main_process():
            _write(self._path, self._records)
        past = f", past {bad_step - good_step} batches" if self._config.pass_bad_batches else ""
        plain = f", without the penalty until step {record.plain_until}" if self._config.plain_steps else ""
        count = f"rollback {len(self._records)} of at most {self._config.max_rollbacks}"
        return f"{count}: back to step {good_step}{past}{plain}"

    def step_kinds(self, kinds: np.ndarray) -> np.ndarray:
        """The kinds of all steps of a run, with the penalty off where a rollback turned it off.

        When it is on again after that, the direction "reused" starts with a full step.
        """
        is_off = np.zeros(len(kinds), bool)
        for record in self._records:
            is_off[record.good_step :] = False
            is_off[record.good_step : record.plain_until] = True
        if self._gnp.direction == "reused":
            return count_reuses(kinds, is_off, self._gnp.reuse_every)
        return np.where(is_off, StepKind.PLAIN, kinds)

    def batches(self, read: Callable[[int, int], Batches], start_step: int, num_steps: int) -> Batches:
        """The batches of steps `start_step + 1` to `num_steps`; `read(i, n)` reads n batches of the stream, from the
        i-th.
        """
        places = np.arange(start_step, num_steps) + self._passed_batches(num_steps)[start_step:]
        starts = sorted({0, *(np.flatnonzero(np.diff(places) != 1) + 1), len(places)})
        for first, end in itertools.pairwise(starts):
            yield from read(int(places[first]), int(end - first))

    def _passed_batches(self, num_steps: int) -> np.ndarray:
        """Number of skipped batches before each of the steps 1, 2, ..., `num_steps`."""
        passed = np.zeros(num_steps, np.int64)
        for record in self._records:
            passed[record.good_step :] = record.num_passed_batches
        return passed


def _record(fields: dict[str, int]) -> Rollback:
    record = Rollback(**fields)
    if not all(type(number) is int and 0 <= number <= _MOST_BATCHES for number in fields.values()):
        raise ValueError(f"{fields} has other values than whole numbers")
    if not record.good_step < record.bad_step or record.plain_until < record.good_step:
        raise ValueError(f"{fields} has steps in the wrong order")
    return record


def _check(config: Config) -> None:
    saves = config.checkpoint.every_steps is not None or config.checkpoint.every_minutes is not None
    check(
        saves or config.divergence.policy != "rollback",
        "divergence.policy is rollback, but checkpoint.every_steps and checkpoint.every_minutes are both None: "
        "there is nothing to go back to; set one of them",
    )
    strengths = {"r": config.gnp.r, "alpha": config.gnp.alpha, "lam": config.gnp.lam}
    off = [f"gnp.{name} is 0" for name, value in strengths.items() if value == 0]
    check(
        not (off and config.divergence.plain_steps),
        f"divergence.plain_steps is {config.divergence.plain_steps}, but {' and '.join(off)}: "
        "there is no penalty to turn off; leave it at 0",
    )


def _read(path: Path | StorePath) -> str:
    try:
        return path.read_text() if path.exists() else "[]"
    except (OSError, ValueError) as error:
        if may_pass(error):
            raise not_now(path, error) from error
        raise ConfigError(f"{path} cannot be read ({error}): repair it, or begin a new run") from error


def _write(path: Path | StorePath, records: list[Rollback]) -> None:
    text = json.dumps([asdict(record) for record in records], indent=2) + "\n"
    try:
        replace_file(path, text.encode())
    except OSError as error:
        if may_pass(error):
            raise not_now(path, error) from error
        raise ConfigError(
            f"{path} cannot be written ({error.strerror}), and without it a later start would not know of this "
            "rollback: free space, and start the same command again"
        ) from error
