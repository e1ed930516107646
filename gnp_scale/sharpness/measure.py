"""Measures the sharpness and robustness of a run that exists; writes nothing into its folder."""

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.checkpoint import stored_shapes
from gnp_scale.config import Config, check
from gnp_scale.data.pipeline import num_eval_batches
from gnp_scale.evaluation.existing import load, task_of, working
from gnp_scale.run.messages import announce
from gnp_scale.run.run_dir import stored_config
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.store import Folder
from gnp_scale.sharpness import examples, landscape, line, progress, rise, robustness, spectrum, trajectory
from gnp_scale.sharpness.examples import During
from gnp_scale.sharpness.line import Line
from gnp_scale.sharpness.objective import Fixed, LossSum, Params, value
from gnp_scale.sharpness.pictures import corrupted_examples
from gnp_scale.sharpness.settings import Settings
from gnp_scale.sharpness.trajectory import Trajectory
from gnp_scale.training.setup import Task


@dataclass
class Report:
    """What was measured."""

    step: int
    scores: dict[str, float] = field(default_factory=dict)
    """`sharpness/*` and `robustness/*`."""
    steps: np.ndarray | None = None
    """The steps of the plane."""
    losses: np.ndarray | None = None
    """Its losses: a row for each step along the second direction."""
    corrupted: np.ndarray | None = None
    """An image with each corruption, as a picture (uint8 H x W x 3)."""
    trajectory: Trajectory | None = None
    """Of the run through its checkpoints."""
    line: Line | None = None
    """Between the parameters of the run and those of another one."""
    other_step: int | None = None
    """The step of the other run."""


@dataclass(frozen=True)
class _Network:
    """What is measured of a network."""

    task: Task
    run_dir: Folder
    params: Params
    batch_stats: object
    settings: Settings
    during: During
    other: Params = None
    """The parameters of the other end of the line, if there is one."""


def measure_run(
    config: Config,
    run_dir: Folder,
    settings: Settings,
    output: Path | None,
    num_averaged: int | None,
    other_dir: Folder | None = None,
) -> Report:
    """Measures the newest checkpoint in `run_dir`, as `config` says; makes the folder `output`, if it is given.

    The moving average is measured if the run keeps one. With `num_averaged`, it is the average of so many checkpoints.
    With `other_dir` it also measures the line to the run there.

    Raises:
        ConfigError: as `evaluate_run`; a measurement has no meaning for this network; or the other run has another one.
    """
    if "spectrum" in settings.measures:
        spectrum.check_installed()
    with working(config, output) as stages:
        task = task_of(config, run_dir, has_own_classes=False)
        step, state = load(run_dir, task, num_averaged, stages)
        other_step, other = _other_end(config, run_dir, other_dir, num_averaged, stages) if other_dir else (None, None)
        during = partial(stages.enter, Stage.EVALUATE, step)
        network = _Network(task, run_dir, *state.evaluated, settings, during, other)
        return _measure(network, Report(step, other_step=other_step))


def _other_end(
    config: Config, run_dir: Folder, other_dir: Folder, num_averaged: int | None, stages: Stages
) -> tuple[int, Params]:
    """The step and the parameters of the run in `other_dir`."""
    other = stored_config(other_dir)
    check(other_dir.resolve() != run_dir.resolve(), f"--to is {other_dir}, which is the run itself: give another one")
    line.check_same_network(config, other, str(other_dir))
    shapes, others = stored_shapes(run_dir), stored_shapes(other_dir)
    differing = [f"{name} {shape} -> {others.get(name)}" for name, shape in shapes.items() if others.get(name) != shape]
    check(
        not differing,
        f"{other_dir} has another network ({', '.join(differing[:1])}): give --to a run of the same network",
    )
    data = replace(config.data, batch_size=other.data.batch_size)
    task = task_of(replace(other, data=data, mesh=config.mesh), other_dir, has_own_classes=False)
    step, state = load(other_dir, task, num_averaged, stages)
    return step, state.evaluated[0]


def _measure(network: _Network, report: Report) -> Report:
    task, settings, during = network.task, network.settings, network.during
    if {"rise", "spectrum", "plane", "trajectory"} & {*settings.measures} or network.other is not None:
        with jax.default_matmul_precision("highest"):
            _measure_loss(network, report)
    num_batches = num_eval_batches(task.dataset.test, task.config.data)
    if "corruptions" in settings.measures:
        told = progress.told(during, "the accuracy on corrupted images", num_batches, "batches")
        accuracy = robustness.of_corruptions(task, network.params, network.batch_stats, settings.seed, told)
        for kind, top1_V in accuracy.items():
            report.scores["robustness/top1"] = top1_V[0]
            report.scores |= {f"robustness/{kind}_{severity}": top1 for severity, top1 in enumerate(top1_V) if severity}
        report.corrupted = corrupted_examples(task.dataset, settings.seed)
    if "rounding" in settings.measures:
        told = progress.told(during, "the accuracy with rounded kernels", num_batches, "batches")
        accuracy = robustness.of_rounding(task, network.params, network.batch_stats, told)
        report.scores["robustness/top1"] = accuracy.pop(32)
        report.scores |= {f"robustness/{num_bits}_bits": top1 for num_bits, top1 in accuracy.items()}
    return report


def _measure_loss(network: _Network, report: Report) -> None:
    """The measurements of the loss at fixed examples."""
    task, settings, during = network.task, network.settings, network.during
    loss_sum, is_free = examples.make_loss_sum(task), examples.free_mask(network.params, task)
    size = min(task.config.data.eval_batch_size, settings.num_examples)
    fixed = examples.read(task, network.batch_stats, settings.num_examples, size, settings.seed, during)
    with during():
        loss = float(jax.jit(partial(value, loss_sum))(network.params, fixed))
    check(math.isfinite(loss), "the loss is not finite: the network has diverged, so measure an earlier run")
    report.scores |= {"sharpness/num_examples": float(jnp.sum(fixed.parts["mask"])), "sharpness/loss": loss}
    if "trajectory" in settings.measures:
        report.trajectory = trajectory.measure(
            task, loss_sum, network.params, network.run_dir, fixed, is_free, settings, during
        )
        report.scores["sharpness/trajectory_share"] = report.trajectory.share
    if "rise" in settings.measures:
        _measure_rise(network, loss_sum, fixed, report)
    key = jax.random.key(settings.seed)
    if "spectrum" in settings.measures:
        report.scores |= _spectrum(network, loss_sum, fixed, is_free, key)
    if "plane" in settings.measures:
        report.steps = np.linspace(-1, 1, settings.grid_size)
        told = progress.told(during, "the plane", len(report.steps), "rows")
        report.losses = landscape.plane(loss_sum, network.params, fixed, is_free, key, report.steps, told)
    if network.other is not None:
        report.line = line.between(task, loss_sum, (network.params, network.other), fixed, settings, during)
        report.scores |= {
            "sharpness/line_barrier": report.line.barrier,
            "sharpness/line_top1_barrier": report.line.top1_barrier,
        }


def _measure_rise(network: _Network, loss_sum: LossSum, fixed: Fixed, report: Report) -> None:
    task, settings, during = network.task, network.settings, network.during
    num_examples = min(settings.num_examples, len(task.dataset.train))
    check(
        settings.group_size <= num_examples,
        f"--group is {settings.group_size}, but {num_examples} examples are measured: give at most so many",
    )
    radius_R, scores = jnp.array(settings.radii, jnp.float32), report.scores
    announce("measuring the rise")
    with during():
        whole = jax.device_get(jax.jit(partial(rise.worst_case, loss_sum))(network.params, fixed, radius_R))
    scores["sharpness/grad_norm"] = float(whole.grad_norm)
    grouped = examples.read(
        task, network.batch_stats, settings.num_examples, settings.group_size, settings.seed, during
    )
    with during():
        mean_over_groups = jax.jit(partial(rise.mean_over_groups, loss_sum))
        mean_R, error_R = jax.device_get(mean_over_groups(network.params, grouped, radius_R))
    for number, radius in enumerate(settings.radii):
        name = f"sharpness/rise_{radius:g}"
        scores[name] = float(whole.rises[number])
        scores[f"{name}_m{settings.group_size}"] = float(mean_R[number])
        if np.isfinite(error_R[number]):
            scores[f"{name}_m{settings.group_size}_error"] = float(error_R[number])


def _spectrum(network: _Network, loss_sum: LossSum, fixed: Fixed, is_free: object, key: jax.Array) -> dict[str, float]:
    settings, during = network.settings, network.during
    sizes = jax.tree.map(lambda w, is_free: w.size if is_free else 0, network.params, is_free)
    num_steps = min(settings.num_lanczos_steps, sum(jax.tree.leaves(sizes)))
    announce(f"measuring the largest eigenvalues: {num_steps} products with the Hessian")
    with during():
        found = spectrum.eigenvalues(loss_sum, network.params, fixed, is_free, key, settings.num_eigenvalues, num_steps)
    if len(found.largest) < settings.num_eigenvalues:
        announce(f"the Hessian has no more than {len(found.largest)} different eigenvalues")
    scores = {}
    for number, (eigenvalue, bound) in enumerate(zip(found.largest, found.bounds, strict=True), start=1):
        scores |= {f"sharpness/eigenvalue_{number}": eigenvalue, f"sharpness/eigenvalue_{number}_bound": bound}
    told = progress.told(during, "the trace", settings.num_vectors, "products with the Hessian")
    trace = spectrum.trace(loss_sum, network.params, fixed, key, settings.num_vectors, told)
    return scores | {
        "sharpness/eigenvalue_lowest": found.lowest,
        "sharpness/trace": trace.mean,
        "sharpness/trace_error": trace.error,
    }
