"""The checkpoints of a run: when to save, which are good, which are kept, and how to restore one."""

import contextlib
import time
from collections.abc import Callable, Collection, Mapping
from types import TracebackType
from typing import Self

from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.checkpoint.exactness import exactness
from gnp_scale.checkpoint.health import HealthGate
from gnp_scale.checkpoint.metadata import Metadata, describe
from gnp_scale.checkpoint.problems import agree
from gnp_scale.checkpoint.restore import latest_valid, stored_scores
from gnp_scale.checkpoint.retention import Scores, kept, score
from gnp_scale.checkpoint.writer import Writer
from gnp_scale.checks import ConfigError, PassingError
from gnp_scale.config import Config
from gnp_scale.run import consensus
from gnp_scale.run.messages import announce
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.store import Folder
from gnp_scale.training.state import TrainState


class Checkpoints:
    """The checkpoints of a run folder. All processes call every method, at the same steps.

    A save copies the state to host memory and returns; files are written during training. A checkpoint is good when it
    has passed the health gate. The newest good ones are kept, whatever is saved after them. `probe` raises
    FileNotFoundError, in the main process, if the folder was moved.
    """

    def __init__(self, run_dir: Folder, config: Config, probe: Callable[[], None] = lambda: None) -> None:
        self._config, settings = config, config.checkpoint
        self._store = open_store(run_dir)
        self._gate = HealthGate(settings.num_healthy_reports, settings.spike_factor)
        self._writer = Writer(self._store, settings.num_save_attempts, self._committed, probe)
        self._store.delete_leftovers()
        # A thousand processes need not list a folder of which one answer counts.
        self._steps = set(consensus.broadcast(self._store.steps() if is_main_process() else []))
        self._good = set(consensus.broadcast(self._store.good_steps() if is_main_process() else []))
        for step in self._steps - self._good:
            self._gate.add(step)
        self._scores = stored_scores(self._store, self._steps)
        self._resumed: Metadata | None = None
        self._last_save_time = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.closing(self._store):
            if error is None:
                self._writer.finish()
            else:
                self._writer.leave()

    @property
    def latest_step(self) -> int | None:
        """The newest committed step; None if there is none."""
        return max(self._steps, default=None)

    @property
    def latest_good_step(self) -> int | None:
        """The newest step that has passed the health gate; None if there is none."""
        return max(self._good, default=None)

    @property
    def stored_step(self) -> int:
        """The newest step in the folder, even if not all processes have seen its commit; 0 if there is none."""
        return max(self._store.steps(), default=0)

    @property
    def latest_scores(self) -> Scores | None:
        """The metrics of the evaluation that was saved with the newest state; None if there was none."""
        return self._scores.get(max(self._steps | self._scores.keys(), default=0))

    def restore(self, abstract_state: TrainState) -> tuple[int, TrainState] | None:
        """(step, state) of the newest intact checkpoint, in these types and shardings; None without checkpoints.

        Newer ones are damaged: they are set aside (renamed), and a line reports each.

        Raises:
            ConfigError: there are checkpoints, but none is intact; or their configuration differs.
        """
        return self._restore(self._steps, abstract_state)

    def roll_back(self, abstract_state: TrainState) -> tuple[int, TrainState] | None:
        """(step, state) of the newest good and intact checkpoint; None if none is good. Newer ones are set aside.

        Raises:
            ConfigError: none of the good ones is intact, or the current write fails.
            PassingError: a store does not answer.
        """
        self._writer.finish()
        # One whose deletion was refused would be taken for a checkpoint of the steps that follow.
        self._steps.update(self._stored())
        if not self._good:
            self._set_aside_after(0, {})
        return self._restore(self._good, abstract_state)

    def _stored(self) -> list[int]:
        """The steps in the folder, when deletions are over."""
        steps, error = [], None
        try:
            self._store.finish_deletions()
            steps = self._store.steps() if is_main_process() else []
        except OSError as failure:
            error = failure
        problem, found = agree(error, steps)
        if problem is not None:
            text = f"the checkpoints cannot be listed ({problem.text}): start the same command again"
            raise PassingError(text) if problem.may_pass else ConfigError(text)
        return found[0]

    def _restore(self, candidates: Collection[int], abstract_state: TrainState) -> tuple[int, TrainState] | None:
        if not candidates:
            return None
        whole = latest_valid(self._store, candidates, abstract_state, self._config)
        self._set_aside_after(whole.step, whole.skipped)
        self._resumed = whole.metadata
        return whole.step, whole.state

    def _set_aside_after(self, last: int, damage: Mapping[int, str]) -> None:
        for step in sorted(step for step in self._steps if step > last):
            self._forget(step)
            name = self._set_aside(step, "damaged" if step in damage else "rolled-back")
            what = f"is damaged ({damage[step]}): set" if step in damage else "was set"
            announce(f"the checkpoint of step {step} {what} aside as {name}")

    def _set_aside(self, step: int, word: str) -> str:
        name, error = "", None
        try:
            name = self._store.quarantine(step, word)
        except OSError as failure:
            error = failure
        problem, _ = agree(error, None)
        if problem is None:
            return name
        failed = f"the checkpoint of step {step} cannot be renamed ({problem.text})"
        if problem.may_pass:
            raise PassingError(f"{failed}: start the same command again when its store answers")
        raise ConfigError(f"{failed}: make its folder writable")

    def is_unevaluated(self, step: int) -> bool:
        """Whether an evaluation is due after `step`, a stored one, which was left out because the run was stopped."""
        return step in self._steps and self._config.train.evaluates_after(step) and step not in self._scores

    def exactness(self) -> str:
        """A message: how exact the numbers are on this mesh after the restored checkpoint."""
        assert self._resumed is not None, "nothing was restored"
        return exactness(self._resumed, self._config)

    def is_due(self, step: int, scores: Scores | None) -> bool:
        """Whether to save after `step`: by step, by time, or for the best evaluation; the same in every process.

        Also if it is stored already: then it may lack the evaluation.
        """
        every = self._config.checkpoint.every_steps
        by_step = every is not None and step % every == 0
        return step in self._steps or by_step or self._is_best(scores) or self._is_due_by_time(step)

    def _is_best(self, scores: Scores | None) -> bool:
        settings = self._config.checkpoint
        if not settings.keep_best or not scores:
            return False
        earlier = [self._scores[known] for known in self._scores.keys() & {*self._steps, self._writer.step}]
        return consensus.broadcast(all(score(settings, scores) > score(settings, other) for other in earlier))

    def _is_due_by_time(self, step: int) -> bool:
        every = self._config.checkpoint.every_minutes
        # Clocks differ between processes. To ask the main one is cheap, but too expensive for every step.
        if every is None or step % self._config.train.log_every_steps != 0:
            return False
        return consensus.broadcast(time.monotonic() - self._last_save_time >= 60 * every)

    def save(self, step: int, state: TrainState, scores: Scores | None) -> None:
        """Saves the state after `step`, with the metrics of the evaluation at that step, if any. One that is stored
        already gets the metrics.

        Raises:
            ConfigError: the store has failed too often.
        """
        if step not in self._steps:
            self._writer.start(step, state, describe(self._config, state, scores))
        elif scores:
            self._store.add_scores(step, scores)
        if scores:
            self._scores[step] = scores
        self._last_save_time = time.monotonic()

    def observe(self, step: int, loss: float) -> None:
        """Takes the reported loss of `step`: passes checkpoints through the gate, and continues to save.

        Raises:
            ConfigError: the store has failed too often.
        """
        self._writer.poll()
        passed = self._gate.observe(step, loss)
        self._good.update(passed)
        for good in passed:
            self._store.mark_good(good)
        self._delete_expendable()

    def _committed(self, step: int) -> None:
        self._steps.add(step)
        self._gate.add(step)
        self._delete_expendable()

    def _delete_expendable(self) -> None:
        for step in self._steps - kept(self._steps, self._good, self._scores, self._config.checkpoint):
            self._forget(step)
            self._store.delete(step)

    def _forget(self, step: int) -> None:
        self._steps.discard(step)
        self._good.discard(step)
        self._scores.pop(step, None)
        self._gate.drop(step)
