"""What it takes to stop a run well, by what its parts have taken so far, and what is lost otherwise."""

from gnp_scale.checkpoint import Checkpoints
from gnp_scale.config import Config
from gnp_scale.exit_codes import Exit
from gnp_scale.goodput import Recorder
from gnp_scale.stages import Stage


class Outlook:
    """Of a run that goes on after step `start`; read from other threads than that of the run. See `preemption.Run`."""

    def __init__(self, config: Config, start: int, recorder: Recorder, checkpoints: Checkpoints) -> None:
        self.num_steps = config.train.num_steps
        self._settings, self._start = config.train, start
        self._recorder, self._stages, self._checkpoints = recorder, recorder.stages, checkpoints

    def needed_s(self, step: int) -> float:
        """Seconds for `step`, an evaluation if one follows it, staging and commit; 0 for what was not done yet.

        The mean time of a step, and the longest of everything else.
        """
        longest_s = self._stages.longest_s
        evaluate_s = longest_s[Stage.EVALUATE] if self._settings.evaluates_after(step) else 0.0
        num_commits = 2 if self.is_writing else 1
        return self._step_s() + evaluate_s + longest_s[Stage.SAVE] + num_commits * self._checkpoints.longest_commit_s

    def _step_s(self) -> float:
        now = self._stages.now
        num_steps = now.num_made_steps - self._start
        return (now.seconds[Stage.TRAIN] + now.seconds[Stage.DATA]) / num_steps if num_steps > 0 else 0.0

    @property
    def is_writing(self) -> bool:
        """Whether a save is being staged, or is not committed yet."""
        return self._stages.now.stage == Stage.SAVE or self._checkpoints.is_writing

    def leave(self) -> str:
        """Closes the record of this start, from which nothing more comes, and says what it leaves behind."""
        made, stored = self._stages.now.num_made_steps, self._checkpoints.stored_step
        self._recorder.end(Exit.PREEMPTED)
        return f"the newest checkpoint is of step {stored}, {max(0, made - stored)} steps are lost"
