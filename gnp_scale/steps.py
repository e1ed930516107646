"""The steps of a run, with its evaluations and saves."""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from gnp_scale.checkpoint import Checkpoints
from gnp_scale.checkpoint.exactness import circumstances
from gnp_scale.data.pipeline import train_batches
from gnp_scale.exit_codes import Exit
from gnp_scale.gnp import StepKind
from gnp_scale.monitoring.metrics import MetricWriter
from gnp_scale.monitoring.profiles import Profile
from gnp_scale.monitoring.progress import ProgressBar
from gnp_scale.monitoring.reporter import Reporter
from gnp_scale.monitoring.throughput import Throughput
from gnp_scale.resilience.divergence import Guard
from gnp_scale.resilience.preemption import EVALUATED, StopRequest
from gnp_scale.resilience.rollback import Rollbacks
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.messages import announce
from gnp_scale.run.mirror import GrowingFiles
from gnp_scale.run.processes import barrier, is_main_process
from gnp_scale.run.recorder import Recorder
from gnp_scale.run.stages import Stage
from gnp_scale.run.store import Folder
from gnp_scale.training.compilation import Programs
from gnp_scale.training.evaluate import Evaluation, make_evaluate
from gnp_scale.training.setup import Task
from gnp_scale.training.state import TrainState
from gnp_scale.training.step import Batch, augmented_images

EVALUATION = "evaluation"
type Name = StepKind | str
"""The name of a program: the kind of a step, or the evaluation."""


@dataclass(frozen=True)
class Run:
    """What the functions of a run share."""

    task: Task
    run_dir: Folder
    files: GrowingFiles
    programs: Programs[Name]
    rollbacks: Rollbacks
    recorder: Recorder
    checkpoints: Checkpoints
    profile: Profile
    stop: StopRequest


def needed(run: Run, start: int) -> list[Name]:
    """The programs that a run needs from step `start` on; those of the steps come first."""
    kinds = run.rollbacks.step_kinds(run.task.planned_kinds)
    names = [StepKind(kind) for kind in np.unique(kinds[start:])]
    return [*names, EVALUATION] if names or run.checkpoints.is_unevaluated(start) else []


def train_from(start: int, state: TrainState, run: Run) -> int:
    """Makes updates `start + 1`, `start + 2`, ... to the last, or until a signal; returns the last one that it made."""
    task, config, stages, checkpoints = run.task, run.task.config, run.recorder.stages, run.checkpoints
    num_steps = config.train.num_steps
    read = partial(train_batches, task.dataset, config.data, config.train.seed)
    kinds = run.rollbacks.step_kinds(task.planned_kinds)
    with (
        MetricWriter(run.files.folder, is_main_process(), start) as writer,
        ProgressBar(start, num_steps, stages, is_main_process()) as bar,
        contextlib.closing(run.rollbacks.batches(read, start, num_steps)) as stream,
        stages.enter(Stage.TRAIN, start),
    ):
        if writer.board is not None:
            writer.board.environment(start, circumstances(config))
        with stages.enter(Stage.DATA, start + 1):
            # After the first batch, threads read ahead while programs are being compiled.
            first = list(itertools.islice(stream, 1))
        with stages.enter(Stage.COMPILE, start):
            num_passes = np.array([task.gnp.num_passes(kind) for kind in StepKind])[kinds]
            throughput = Throughput(
                start, config.data.batch_size, lambda: task.flops_per_pass, num_passes, run.recorder
            )
            compiled = {name: run.programs.get(name) for name in needed(run, start) if name != EVALUATION}
            barrier()
        evaluate = make_evaluate(task, partial(_evaluation, run))
        reporter = Reporter(writer, bar, throughput, Guard(config.divergence), checkpoints.observe, broadcast)
        run.profile.begin(start)
        run.stop.begin(start, num_steps, partial(_leave, run))
        end = _StepEnd(run, evaluate, writer, reporter, throughput)
        if checkpoints.is_unevaluated(start):
            announce(f"evaluating step {start}, which was saved without its evaluation")
            if end(start, state, after=state):
                return start

        for step in range(start + 1, num_steps + 1):
            if run.profile.turns_before(step):
                _turn_profile(run, step, throughput, after=state)
            with run.profile.step(step):
                with throughput.waiting_for_data(step):
                    batch = first.pop() if first else next(stream)
                state, metrics = compiled[kinds[step - 1]](state, batch)
            if step == start + 1:
                jax.block_until_ready(metrics)
                run.recorder.first_step_is_computed()
            if step == 1:
                with throughput.paused(Stage.COMPILE, step, after=metrics):
                    _show_inputs(writer, task, batch)
            # The devices free it after the step.
            del batch
            bar.advance(step)
            reporter.hold(step, metrics, is_logged=step % config.train.log_every_steps == 0)
            if end(step, state, after=metrics):
                return step
    return num_steps


@dataclass(frozen=True)
class _StepEnd:
    """What is done when a step is made."""

    run: Run
    evaluate: Callable[..., Evaluation]
    writer: MetricWriter
    reporter: Reporter
    throughput: Throughput

    def __call__(self, step: int, state: TrainState, after: Any) -> bool:
        """Evaluates and saves the state after `step`, if that is due; returns whether the run is asked to stop here.

        A stop leaves an evaluation out, or ends it: the next start makes it. `after` are arrays of the last step.
        """
        run, train, scores = self.run, self.run.task.config.train, None
        is_evaluated = train.evaluates_after(step)
        stops = run.stop.reached(step, int(is_evaluated))
        if is_evaluated and not stops:
            self.reporter.release()
            with self.throughput.paused(Stage.EVALUATE, step, after), contextlib.suppress(_StoppedError):
                scores = self._scores(step, self.evaluate(state.network, partial(_go_on, run.stop, step)))
                self.reporter.report(step, scores)
            stops = run.stop.reached(step, EVALUATED)
        if step == train.num_steps or stops or run.checkpoints.is_due(step, scores):
            self.reporter.release()
            with self.throughput.paused(Stage.SAVE, step, after):
                self.writer.sync()
                run.files.publish()
                run.checkpoints.save(step, state, scores)
        return stops

    def _scores(self, step: int, evaluation: Evaluation) -> dict[str, float]:
        """The scores of the evaluation after `step`, of which TensorBoard may get pictures."""
        task, board = self.run.task, self.writer.board
        if board is not None and task.config.train.shows_guesses_after(step):
            board.guesses(step, evaluation.guesses(), task.dataset)
        return evaluation.scores


class _StoppedError(Exception):
    """The run is to stop inside an evaluation."""


def _go_on(stop: StopRequest, step: int, batch: int) -> None:
    if stop.reached(step, 1 + batch):
        raise _StoppedError


def _evaluation(run: Run) -> Any:
    """The program of an evaluation, which is compiled during training; waits until every process has it.

    If all are to stop, which is before the first batch, no process waits for its compiler, and the result may be None.
    """
    program = run.programs.get(EVALUATION, unless=run.stop.is_planned)
    barrier()
    return program


def _turn_profile(run: Run, step: int, throughput: Throughput, after: TrainState) -> None:
    """Begins or ends a recording before `step`, when the devices have computed `after`, the state of the last one."""
    with throughput.paused(Stage.COMPILE, step - 1, after):
        # What compiles while steps are recorded slows them.
        run.programs.get(EVALUATION, unless=run.stop.is_planned)
    with throughput.paused(Stage.SAVE, step - 1, after):
        run.profile.turn()


def _leave(run: Run) -> str:
    """Closes the record of a run that exits early, and returns what is lost; called from another thread."""
    made, stored = run.recorder.stages.now.num_made_steps, run.checkpoints.stored_step
    run.recorder.end(Exit.PREEMPTED)
    run.files.leave()
    return f"the newest checkpoint is of step {stored}, {max(0, made - stored)} steps are lost"


def _show_inputs(writer: MetricWriter, task: Task, batch: Batch) -> None:
    """Writes the configuration and some augmented images of the first batch to TensorBoard."""
    image_BxHxWxC = augmented_images(task, batch)
    if writer.board is not None:
        writer.board.config(task.config)
        writer.board.images(1, "train/images", image_BxHxWxC, task.dataset.mean, task.dataset.std)
