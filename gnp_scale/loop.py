"""A run from its start to its end: set-up, resume, rollback, and how it ended."""

import itertools
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax

from gnp_scale import recipe
from gnp_scale.checkpoint import Checkpoints, has_checkpoints
from gnp_scale.config import Config, ConfigError
from gnp_scale.data.sources import unread_advice
from gnp_scale.exit_codes import Exit
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh, resolve
from gnp_scale.monitoring.profiles import Profile
from gnp_scale.monitoring.progress import print_summary
from gnp_scale.resilience.divergence import DivergedError
from gnp_scale.resilience.preemption import StopRequest
from gnp_scale.resilience.rollback import Rollbacks
from gnp_scale.resilience.watchdog import Watchdog
from gnp_scale.run import layout, program_cache
from gnp_scale.run.agreement import check_agreement
from gnp_scale.run.data_sizes import check_data_agree, keep_sizes
from gnp_scale.run.messages import announce
from gnp_scale.run.mirror import GrowingFiles
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.recorder import Recorder, append_exit
from gnp_scale.run.run_dir import check_reach, claimed
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.store import Folder
from gnp_scale.steps import EVALUATION, Name, Run, needed, train_from
from gnp_scale.training.compilation import Programs, misfits_are_config_errors
from gnp_scale.training.evaluate import trace_eval_step
from gnp_scale.training.groups import group_advice, mesh_advice, num_parts
from gnp_scale.training.penalty import warm_up_advice
from gnp_scale.training.setup import Task
from gnp_scale.training.state import TrainState
from gnp_scale.training.step import make_train_step

_RUNS = itertools.count()
"""Numbers the runs of this process."""


def train(config: Config, run_dir: Folder, stop: StopRequest | None = None) -> Exit:
    """Trains as `config` says and writes everything into `run_dir`; resumes from the newest checkpoint there.

    Raises:
        ConfigError: the configuration is wrong for the data or the machine, or the folder holds a different run.
    """
    # The first run of a process begins with it.
    stages = Stages(None if next(_RUNS) == 0 else time.perf_counter())
    with Watchdog(stages, run_dir if isinstance(run_dir, Path) else None) as watchdog:
        check_agreement(config)
        check_reach(run_dir)
        config = replace(config, mesh=resolve(config.mesh, jax.device_count()))
        with jax.set_mesh(make_mesh(config.mesh)):
            task = Task.of(config)
            check_data_agree(task.dataset.sizes, task.dataset.class_names, task.dataset.fingerprints)
            kinds = _kinds(task, Rollbacks(run_dir, config))
            with stages.enter(Stage.COMPILE, 0), misfits_are_config_errors():
                traced = _traced(task, kinds)
            # Here, so that a file that does not fit leaves no folder behind.
            is_new = task.initial is not None and not has_checkpoints(run_dir)
            weights = task.initial.check() if task.initial is not None and is_new else None
            with (
                claimed(run_dir, config, watchdog.stop_this) as files,
                Recorder(files.folder, stages, is_main_process()) as recorder,
                stop or StopRequest() as stop,
                Programs(traced) as programs,
            ):
                keep_sizes(run_dir, task.dataset.sizes, task.dataset.class_names)
                watchdog.on_end, watchdog.stacks_dir = partial(_close_record, files), files.folder
                # So that the record of this start is there, however soon it is killed.
                files.publish()
                if jax.default_backend() == "gpu":
                    # XLA chooses algorithms for a GPU by their times, so only the same program computes the same bits.
                    program_cache.keep_in(run_dir / layout.COMPILED_FOLDER)
                # Before this line an earlier start may have written the file.
                rollbacks = Rollbacks(run_dir, config)
                announce(f"run folder {run_dir}\n{recipe.summary(config)}")
                if weights is not None:
                    weights.record(run_dir)
                for advice in _advice(task, kinds):
                    announce(advice)
                # A run that is asked to stop ends its saves before it writes a profile.
                with (
                    Profile(config.train, run_dir) as profile,
                    Checkpoints(run_dir, config, files.probe) as checkpoints,
                ):
                    run = Run(task, run_dir, files, programs, rollbacks, recorder, checkpoints, profile, stop)
                    last = _train_on(run)
                # A run may end before the lock looks at the folder: then its last checkpoint is in another one.
                files.check_place()
                code = _tell_end(run, last)
                recorder.end(code)
                return code


def _tell_end(run: Run, last: int | None) -> Exit:
    """Prints how the run ended; `last` is the step after which it stopped, None if it diverged."""
    checkpoints, num_steps = run.checkpoints, run.task.config.train.num_steps
    if last is None:
        latest = checkpoints.latest_step
        announce("there is no checkpoint" if latest is None else f"the newest checkpoint is of step {latest}")
        return Exit.DIVERGED
    if last < num_steps or checkpoints.latest_scores is None:
        announce(f"stopped after step {last} and saved, no step is lost: start the same command again to go on")
        return Exit.PREEMPTED
    if is_main_process():
        print_summary(run.run_dir, last, checkpoints.latest_scores, time.perf_counter() - run.recorder.stages.began_s)
    return Exit.FINISHED


def _kinds(task: Task, rollbacks: Rollbacks) -> list[StepKind]:
    """The kinds that steps of the run may have."""
    planned = task.planned_kinds
    # A later rollback may turn the penalty on again at steps where an earlier one turned it off.
    kinds = {*planned.tolist(), *rollbacks.step_kinds(planned).tolist()}
    if task.config.divergence.plain_steps:
        kinds.add(StepKind.PLAIN)
    return [StepKind(kind) for kind in kinds]


def _traced(task: Task, kinds: Collection[StepKind]) -> dict[Name, jax.stages.Lowered]:
    """The programs of a run, to be compiled: the steps of `kinds`, and the evaluation."""
    train_step, arguments = make_train_step(task), (task.abstract_state(), task.abstract_batch())
    steps = {kind: train_step.lower(*arguments, kind=kind) for kind in kinds}
    return {**steps, EVALUATION: trace_eval_step(task)}


def _advice(task: Task, kinds: Collection[StepKind]) -> Iterator[str]:
    """What might be better in another experiment, or has no effect in this one."""
    config, model = task.config, task.model
    of_batch_norm = model.batch_norm_advice(config.data.batch_size, num_parts(config))
    of_groups = group_advice(config, kinds, model.bn_group_size)
    of_options = unread_advice(config.data), config.optim.unused_advice(), warm_up_advice(config)
    return filter(None, (*of_options, of_batch_norm, of_groups, mesh_advice(config, kinds)))


def _train_on(run: Run) -> int | None:
    """Resumes from the newest checkpoint, or from an earlier one after a divergence; returns the step after which it
    stopped.

    None means that the run diverged and may not roll back.
    """
    task, stages, checkpoints = run.task, run.recorder.stages, run.checkpoints
    run.programs.start(needed(run, checkpoints.latest_step or 0))
    with stages.enter(Stage.RESTORE, 0):
        start, state = checkpoints.restore(task.abstract_state()) or _beginning(run)
    if 0 < start < task.config.train.num_steps:
        announce(f"going on after step {start}, {checkpoints.exactness()}")
    if start == 0 and (last := run.recorder.last_earlier_step):
        announce(f"beginning at step 0 again: {run.run_dir} has no checkpoint, although step {last} was made")
    while True:
        run.recorder.go_on_from(start)
        try:
            return train_from(start, state, run)
        except DivergedError as error:
            bad_step, diverged = error.step, f"diverged: {error}"
        # Outside of `except` the frames of the error are gone, so the arrays of the old state are freed.
        with stages.enter(Stage.RESTORE, bad_step):
            if not run.rollbacks.may_roll_back:
                announce(diverged)
                return None
            try:
                start, state = checkpoints.roll_back(task.abstract_state()) or _beginning(run)
            except ConfigError:
                announce(diverged)
                raise
        announce(f"{diverged}; {run.rollbacks.add(start, bad_step)}")


def _beginning(run: Run) -> tuple[int, TrainState]:
    """(0, the state before the first step); a file of weights must be that of the first start."""
    if run.task.initial is not None:
        run.task.initial.check_unchanged(run.run_dir)
    return 0, run.task.init_state()


def _close_record(files: GrowingFiles, code: Exit) -> None:
    """Closes the record of a run that hangs or has lost another process; called from another thread."""
    append_exit(files.folder, code)
    files.leave()
