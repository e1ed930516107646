"""The training loop."""

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnp_scale import PROCESS_START_S, recipe
from gnp_scale.checkpoint import Checkpoints, load_newest
from gnp_scale.config import Config, ConfigError
from gnp_scale.data.pipeline import train_batches
from gnp_scale.evaluate import make_evaluate
from gnp_scale.gnp import Phase
from gnp_scale.mesh import make_mesh, resolve
from gnp_scale.metrics import MetricWriter
from gnp_scale.preemption import StopRequest
from gnp_scale.progress import ProgressBar, announce, print_summary
from gnp_scale.report import DivergedError, Reporter
from gnp_scale.rundir import claim
from gnp_scale.runtime import Exit, is_main_process
from gnp_scale.state import TrainState
from gnp_scale.step import Batch, augmented_images, make_train_step
from gnp_scale.task import Task
from gnp_scale.throughput import Throughput


def train(config: Config, run_dir: Path) -> Exit:
    """Trains as `config` says and leaves everything in `run_dir`; goes on from the newest checkpoint there.

    Raises:
        ConfigError: the configuration is wrong for the data or the machine, or the folder holds a different run.
    """
    config = replace(config, mesh=resolve(config.mesh, jax.device_count()))
    with jax.set_mesh(make_mesh(config.mesh)):
        task = Task.of(config)
        steps = _trace(task)
        claim(run_dir, config)
        announce(f"run folder {run_dir}\n{recipe.summary(config)}")
        with StopRequest() as stop, Checkpoints(run_dir, config) as checkpoints:
            start = checkpoints.latest_step or 0
            if 0 < start < config.train.num_steps:
                announce(f"going on after step {start}, {checkpoints.exactness()}")
            state = checkpoints.restore(task.abstract_state()) if start else task.init_state()
            try:
                last = _train_from(start, state, task, steps, run_dir, checkpoints, stop)
            except DivergedError as error:
                announce(f"diverged: {error}; the newest checkpoint is of step {checkpoints.latest_step}")
                return Exit.DIVERGED
            scores = checkpoints.latest_scores
    if last < config.train.num_steps:
        announce(f"stopped after step {last} and saved: start the same command again to go on")
        return Exit.PREEMPTED
    assert scores is not None, "the last step is evaluated and saved"
    if is_main_process():
        print_summary(run_dir, last, scores, time.perf_counter() - PROCESS_START_S)
    return Exit.FINISHED


def evaluate_run(config: Config, run_dir: Path) -> tuple[int, dict[str, float]]:
    """(step, scores) of the newest checkpoint in `run_dir`, evaluated as `config` says.

    Raises:
        ConfigError: there is no checkpoint, or the configuration is wrong for the data or the machine.
    """
    with jax.set_mesh(make_mesh(config.mesh)):
        task = Task.of(config)
        step, state = load_newest(run_dir, task.abstract_state())
        return step, make_evaluate(task)(state)


def _trace(task: Task) -> dict[int, Any]:
    """The step of each phase of the run, traced: what does not fit shows here, before anything is written."""
    train_step, state, batch = make_train_step(task), task.abstract_state(), task.abstract_batch()
    phases = set(task.gnp.phases(np.arange(task.config.train.num_steps)).tolist())
    try:
        return {phase: train_step.lower(state, batch, phase=Phase(phase)) for phase in phases}
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"the parts of a batch do not fit each other or the mesh: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).partition("\n---")[0].split())


def _train_from(
    start: int,
    state: TrainState,
    task: Task,
    steps: dict[int, Any],
    run_dir: Path,
    checkpoints: Checkpoints,
    stop: StopRequest,
) -> int:
    """Makes updates `start + 1`, `start + 2`, ... to the last, or until a signal; returns the one it stopped after."""
    config, num_steps = task.config, task.config.train.num_steps
    stream = train_batches(task.dataset, config.data, config.train.seed, start, num_steps - start)
    phases = task.gnp.phases(np.arange(num_steps))
    with (
        MetricWriter(run_dir, is_main_process(), start) as writer,
        ProgressBar(start, num_steps, is_main_process()) as bar,
        contextlib.closing(stream) as batches,
    ):
        compiled = {phase: steps[phase].compile() for phase in set(phases[start:].tolist())}
        evaluate = make_evaluate(task)
        throughput = Throughput(start, config.data.batch_size, task.flops_per_pass())
        reporter = Reporter(writer, bar, throughput)

        for step in range(start + 1, num_steps + 1):
            with throughput.waiting_for_data():
                batch = next(batches)
            if step == 1:
                with throughput.paused(after=batch):
                    _show_inputs(writer, task, batch)
            phase = Phase(phases[step - 1])
            state, metrics = compiled[phase](state, batch)
            reporter.release()
            throughput.count(task.gnp.num_passes(phase))
            bar.advance(step)
            if step % config.train.log_every_steps == 0:
                reporter.hold(step, metrics)

            is_last = step == num_steps
            scores = None
            if is_last or step % config.train.eval_every_steps == 0:
                reporter.release()
                with throughput.paused(after=metrics):
                    scores = evaluate(state)
                reporter.report(step, scores)

            stops = stop.reached(step)
            if is_last or stops or checkpoints.is_due(step, scores):
                reporter.release()
                with throughput.paused(after=metrics):
                    checkpoints.save(step, state, scores)
            if stops:
                return step
    return num_steps


def _show_inputs(writer: MetricWriter, task: Task, batch: Batch) -> None:
    """The configuration and some augmented images of the first batch, for TensorBoard."""
    image_BxHxWxC = augmented_images(task, batch)
    if writer.board is not None:
        writer.board.config(task.config)
        writer.board.images(1, "train/images", image_BxHxWxC, task.dataset.mean, task.dataset.std)
