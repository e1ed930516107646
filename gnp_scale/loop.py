"""The training loop."""

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnp_scale import PROCESS_START_S, recipe
from gnp_scale.checkpoint import Checkpoints, has_checkpoints
from gnp_scale.checkpoint.exactness import circumstances
from gnp_scale.config import Config, ConfigError
from gnp_scale.data.pipeline import train_batches
from gnp_scale.exit_codes import Exit
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh, resolve
from gnp_scale.models import registry
from gnp_scale.monitoring.metrics import MetricWriter
from gnp_scale.monitoring.profiles import Profile
from gnp_scale.monitoring.progress import ProgressBar, print_summary
from gnp_scale.monitoring.reporter import Reporter
from gnp_scale.monitoring.throughput import Throughput
from gnp_scale.resilience.divergence import DivergedError, Guard
from gnp_scale.resilience.preemption import StopRequest
from gnp_scale.resilience.rollback import Rollbacks
from gnp_scale.resilience.watchdog import Watchdog
from gnp_scale.run import environment, layout
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.data_sizes import check_sizes_agree, keep_sizes
from gnp_scale.run.history import Recorder, append_exit
from gnp_scale.run.messages import announce, one_line
from gnp_scale.run.mirror import GrowingFiles
from gnp_scale.run.processes import barrier, check_agreement, is_main_process
from gnp_scale.run.run_dir import check_reach, claimed
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.store import Folder
from gnp_scale.training.compilation import Programs
from gnp_scale.training.evaluate import Evaluation, make_evaluate, trace_eval_step
from gnp_scale.training.penalty import group_advice
from gnp_scale.training.setup import Task
from gnp_scale.training.state import TrainState
from gnp_scale.training.step import Batch, augmented_images, make_train_step

_EVALUATION = "evaluation"
type _Name = StepKind | str
"""The name of a program: the kind of a step, or the evaluation."""


@dataclass(frozen=True)
class _Run:
    """What the functions of a run share."""

    task: Task
    run_dir: Folder
    files: GrowingFiles
    programs: Programs[_Name]
    rollbacks: Rollbacks
    recorder: Recorder
    checkpoints: Checkpoints
    profile: Profile
    stop: StopRequest


def train(config: Config, run_dir: Folder, stop: StopRequest | None = None) -> Exit:
    """Trains as `config` says and writes everything into `run_dir`; resumes from the newest checkpoint there.

    Raises:
        ConfigError: the configuration is wrong for the data or the machine, or the folder holds a different run.
    """
    stages = Stages()
    with Watchdog(stages, run_dir if isinstance(run_dir, Path) else None) as watchdog:
        check_agreement(config)
        check_reach(run_dir)
        config = replace(config, mesh=resolve(config.mesh, jax.device_count()))
        with jax.set_mesh(make_mesh(config.mesh)):
            task = Task.of(config)
            check_sizes_agree(task.dataset.sizes)
            kinds = _kinds(task, Rollbacks(run_dir, config))
            with stages.enter(Stage.COMPILE, 0), _misfits_are_config_errors():
                train_step, arguments = make_train_step(task), (task.abstract_state(), task.abstract_batch())
                traced: dict[_Name, Any] = {kind: train_step.lower(*arguments, kind=kind) for kind in kinds}
                traced[_EVALUATION] = trace_eval_step(task)
            # Here, so that a file that does not fit leaves no folder behind.
            is_new = task.initial is not None and not has_checkpoints(run_dir)
            weights = task.initial.check() if task.initial is not None and is_new else None
            with (
                claimed(run_dir, config, watchdog.stop_this) as files,
                Recorder(files.folder, stages, is_main_process()) as recorder,
                Programs(traced) as programs,
            ):
                keep_sizes(run_dir, task.dataset.sizes)
                watchdog.on_end, watchdog.stacks_dir = partial(_close_record, files), files.folder
                # So that the record of this start is there, however soon it is killed.
                files.publish()
                if jax.default_backend() == "gpu":
                    # XLA chooses algorithms for a GPU by their times, so only the same program computes the same bits.
                    environment.keep_compiled_in(run_dir / layout.COMPILED_FOLDER)
                # Before this line an earlier start may have written the file.
                rollbacks = Rollbacks(run_dir, config)
                announce(f"run folder {run_dir}\n{recipe.summary(config)}")
                if weights is not None:
                    weights.record(run_dir)
                num_parts = max(config.train.accumulate_steps, config.gnp.perturb_groups)
                if advice := registry.batch_norm_advice(config.model, config.data.batch_size, num_parts):
                    announce(advice)
                if advice := group_advice(config, kinds, task.model.bn_group_size):
                    announce(advice)
                stop = stop or StopRequest()
                # A run that is asked to stop ends its saves before it writes a profile.
                with Profile(config.train, run_dir) as profile, Checkpoints(run_dir, config) as checkpoints:
                    run = _Run(task, run_dir, files, programs, rollbacks, recorder, checkpoints, profile, stop)
                    last = _train_on(run)
                code = _tell_end(run, last)
                recorder.end(code)
                return code


def _tell_end(run: _Run, last: int | None) -> Exit:
    """Prints how the run ended; `last` is the step after which it stopped, None if it diverged."""
    checkpoints, num_steps = run.checkpoints, run.task.config.train.num_steps
    if last is None:
        latest = checkpoints.latest_step
        announce("there is no checkpoint" if latest is None else f"the newest checkpoint is of step {latest}")
        return Exit.DIVERGED
    if last < num_steps:
        announce(f"stopped after step {last} and saved, no step is lost: start the same command again to go on")
        return Exit.PREEMPTED
    assert checkpoints.latest_scores is not None, "the last step is evaluated and saved"
    if is_main_process():
        print_summary(run.run_dir, last, checkpoints.latest_scores, time.perf_counter() - PROCESS_START_S)
    return Exit.FINISHED


def _kinds(task: Task, rollbacks: Rollbacks) -> list[StepKind]:
    """The kinds that steps of the run may have."""
    planned = task.gnp.step_kinds(np.arange(task.config.train.num_steps))
    # A later rollback may turn the penalty on again at steps where an earlier one turned it off.
    kinds = {*planned.tolist(), *rollbacks.step_kinds(planned).tolist()}
    if task.config.divergence.plain_steps:
        kinds.add(StepKind.PLAIN)
    return [StepKind(kind) for kind in kinds]


@contextlib.contextmanager
def _misfits_are_config_errors() -> Iterator[None]:
    """Turns a ValueError from tracing a step into a ConfigError. Nothing has been written at this point."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"the parts of a batch do not fit each other or the mesh: {one_line(error)}") from error


def _train_on(run: _Run) -> int | None:
    """Resumes from the newest checkpoint, or from an earlier one after a divergence; returns the step after which it
    stopped.

    None means that the run diverged and may not roll back.
    """
    task, stages, checkpoints = run.task, run.recorder.stages, run.checkpoints
    run.programs.start(_needed(run, checkpoints.latest_step or 0))
    with stages.enter(Stage.RESTORE, 0):
        start, state = checkpoints.restore(task.abstract_state()) or (0, task.init_state())
    if 0 < start < task.config.train.num_steps:
        announce(f"going on after step {start}, {checkpoints.exactness()}")
    while True:
        run.recorder.go_on_from(start)
        try:
            return _train_from(start, state, run)
        except DivergedError as error:
            bad_step, diverged = error.step, f"diverged: {error}"
        # Outside of `except` the frames of the error are gone, so the arrays of the old state are freed.
        with stages.enter(Stage.RESTORE, bad_step):
            if not run.rollbacks.may_roll_back:
                announce(diverged)
                return None
            start, state = checkpoints.roll_back(task.abstract_state()) or (0, task.init_state())
        announce(f"{diverged}; {run.rollbacks.add(start, bad_step)}")


def _needed(run: _Run, start: int) -> list[_Name]:
    """The programs that a run needs from step `start` on; those of the steps come first."""
    kinds = run.rollbacks.step_kinds(run.task.gnp.step_kinds(np.arange(run.task.config.train.num_steps)))
    names = [StepKind(kind) for kind in np.unique(kinds[start:])]
    return [*names, _EVALUATION] if names else []


def _evaluation(run: _Run) -> Any:
    """The program of an evaluation, which is compiled during training; waits until every process has it."""
    program = run.programs.get(_EVALUATION)
    barrier()
    return program


def _train_from(start: int, state: TrainState, run: _Run) -> int:
    """Makes updates `start + 1`, `start + 2`, ... to the last, or until a signal; returns the last one that it made."""
    task, config, stages, checkpoints = run.task, run.task.config, run.recorder.stages, run.checkpoints
    num_steps = config.train.num_steps
    read = partial(train_batches, task.dataset, config.data, config.train.seed)
    kinds = run.rollbacks.step_kinds(task.gnp.step_kinds(np.arange(num_steps)))
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
            compiled = {name: run.programs.get(name) for name in _needed(run, start) if name != _EVALUATION}
            barrier()
        evaluate = make_evaluate(task, partial(_evaluation, run))
        reporter = Reporter(writer, bar, throughput, Guard(config.divergence), checkpoints.observe, broadcast)
        run.profile.begin(start)
        run.stop.begin(start, num_steps, partial(_leave, run))

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

            scores = None
            if config.train.evaluates_after(step):
                reporter.release()
                with throughput.paused(Stage.EVALUATE, step, after=metrics):
                    scores = _scores(evaluate(state), step, writer, task)
                reporter.report(step, scores)

            stops = run.stop.reached(step)
            if step == num_steps or stops or checkpoints.is_due(step, scores):
                reporter.release()
                with throughput.paused(Stage.SAVE, step, after=metrics):
                    writer.sync()
                    run.files.publish()
                    checkpoints.save(step, state, scores)
            if stops:
                return step
    return num_steps


def _turn_profile(run: _Run, step: int, throughput: Throughput, after: TrainState) -> None:
    """Begins or ends a recording before `step`, when the devices have computed `after`, the state of the last one."""
    with throughput.paused(Stage.COMPILE, step - 1, after):
        # What compiles while steps are recorded slows them.
        run.programs.get(_EVALUATION)
    with throughput.paused(Stage.SAVE, step - 1, after):
        run.profile.turn()


def _scores(evaluation: Evaluation, step: int, writer: MetricWriter, task: Task) -> dict[str, float]:
    """The scores of the evaluation after `step`, of which TensorBoard may get pictures."""
    if writer.board is not None and task.config.train.shows_guesses_after(step):
        writer.board.guesses(step, evaluation.guesses(), task.dataset)
    return evaluation.scores


def _close_record(files: GrowingFiles, code: Exit) -> None:
    """Closes the record of a run that hangs or has lost another process; called from another thread."""
    append_exit(files.folder, code)
    files.leave()


def _leave(run: _Run) -> str:
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
