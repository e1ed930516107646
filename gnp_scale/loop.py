"""The training loop."""

import contextlib
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from gnp_scale import recipe
from gnp_scale.checkpoint import Checkpoints
from gnp_scale.config import Config, ConfigError
from gnp_scale.data.pipeline import train_batches
from gnp_scale.evaluate import make_evaluate
from gnp_scale.gnp import Phase
from gnp_scale.mesh import make_mesh, resolve
from gnp_scale.metrics import MetricWriter
from gnp_scale.preemption import StopRequest
from gnp_scale.progress import ProgressBar, announce, print_summary
from gnp_scale.report import Reporter
from gnp_scale.rundir import claim
from gnp_scale.runtime import Exit, is_main_process
from gnp_scale.state import TrainState
from gnp_scale.step import Batch, augmented_images, make_train_step
from gnp_scale.task import Task
from gnp_scale.throughput import PROCESS_START_S, Throughput


def train(config: Config, run_dir: Path) -> Exit:
    """Trains as `config` says and leaves everything in `run_dir`; goes on from the newest checkpoint there.

    Raises:
        ConfigError: the configuration is wrong for the data or the machine, or the folder holds a different run.
    """
    config = replace(config, mesh=resolve(config.mesh, jax.device_count()))
    with jax.set_mesh(make_mesh(config.mesh)):
        task = Task.of(config)
        claim(run_dir, config)
        announce(f"run folder {run_dir}\n{recipe.summary(config)}")
        with StopRequest() as stop, Checkpoints(run_dir, config) as checkpoints:
            start = checkpoints.latest_step or 0
            if 0 < start < config.train.num_steps:
                announce(f"going on after step {start}, {checkpoints.exactness()}")
            state = checkpoints.restore(task.abstract_state()) if start else task.init_state()
            last = _train_from(start, state, task, run_dir, checkpoints, stop)
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
    with jax.set_mesh(make_mesh(config.mesh)), Checkpoints(run_dir, config) as checkpoints:
        step = checkpoints.latest_step
        if step is None:
            raise ConfigError(f"{run_dir} holds no checkpoints: give the folder of a run that has saved one")
        task = Task.of(config)
        return step, make_evaluate(task)(checkpoints.restore(task.abstract_state()))


def _train_from(
    start: int, state: TrainState, task: Task, run_dir: Path, checkpoints: Checkpoints, stop: StopRequest
) -> int:
    """Makes updates `start + 1`, `start + 2`, ... to the last, or until a signal; returns the one it stopped after."""
    config, num_steps = task.config, task.config.train.num_steps
    stream = train_batches(task.dataset, config.data, config.train.seed, start, num_steps - start)
    phases = task.gnp.phases(np.arange(num_steps))
    num_passes = np.mean([task.gnp.num_passes(Phase(phase)) for phase in phases])
    with (
        MetricWriter(run_dir, is_main_process(), start) as writer,
        ProgressBar(start, num_steps, is_main_process()) as bar,
        contextlib.closing(stream) as batches,
    ):
        compiled = _compile(task, state, phases[start:])
        evaluate = make_evaluate(task)
        throughput = Throughput(start, config.data.batch_size, int(task.flops_per_pass() * num_passes))
        reporter = Reporter(writer, bar, throughput)

        for step in range(start + 1, num_steps + 1):
            with throughput.waiting_for_data():
                batch = next(batches)
            if step == 1:
                _show_inputs(writer, task, batch)
            state, metrics = compiled[phases[step - 1]](state, batch)
            reporter.release()
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


def _compile(task: Task, state: TrainState, phases: np.ndarray) -> dict[int, Callable[..., Any]]:
    """A step for each phase that the rest of the run has."""
    train_step = make_train_step(task)
    batch = task.abstract_batch()
    return {phase: train_step.lower(state, batch, phase=Phase(phase)).compile() for phase in set(phases.tolist())}


def _show_inputs(writer: MetricWriter, task: Task, batch: Batch) -> None:
    """The configuration and some augmented images of the first batch, for TensorBoard."""
    image_BxHxWxC = augmented_images(task, batch)
    if writer.board is not None:
        writer.board.config(task.config)
        writer.board.images(1, "train/images", image_BxHxWxC, task.dataset.mean, task.dataset.std)
