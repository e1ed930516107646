"""Trains one run in this process, and measures what it has reached."""

import shutil
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import jax

from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.checkpoint.restore import latest_valid
from gnp_scale.config import Config, ConfigError, check
from gnp_scale.data import sources
from gnp_scale.data.dataset import Examples
from gnp_scale.evidence import outcome
from gnp_scale.evidence.outcome import Outcome
from gnp_scale.evidence.plan import num_passes
from gnp_scale.exit_codes import Exit
from gnp_scale.loop import train
from gnp_scale.mesh import make_mesh, resolve
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.resilience.preemption import StopRequest
from gnp_scale.run.agreement import check_agreement
from gnp_scale.run.consensus import first_error
from gnp_scale.run.history import read_history
from gnp_scale.run.layout import CHECKPOINTS_FOLDER
from gnp_scale.run.processes import is_main_process
from gnp_scale.sweeps.results import TOP1
from gnp_scale.training.evaluate import make_evaluate, trace_eval_step
from gnp_scale.training.setup import Task


def check_fits(config: Config) -> None:
    """Checks what would end each run of `config` on this machine.

    Raises:
        ConfigError: the data are missing, the mesh or the batches do not fit the devices, or processes do not agree.
    """
    check_agreement(config)
    with jax.set_mesh(make_mesh(config.mesh)):
        Task.of(config)


def trial(config: Config, run_dir: Path, stop: StopRequest, *, is_final: bool) -> Outcome | None:
    """Trains the run of `config` in `run_dir`, or resumes it, and keeps its outcome there; None if it was stopped.

    Test images are read only if the run is a final one. Then both of its checkpoints are kept, and otherwise none.
    Processes that train together all call it.

    Raises:
        ConfigError: the data are missing, or the folder holds another run.
        OSError: the outcome cannot be written.
    """
    code = train(config, run_dir, stop)
    if code == Exit.PREEMPTED:
        return None
    if code == Exit.DIVERGED:
        result = Outcome(num_passes(config))
    elif code == Exit.FINISHED:
        result = _measure(config, run_dir, is_final=is_final)
    else:
        raise ConfigError(f"{run_dir} ended with exit code {code}: look into its output")
    problem = first_error(_keep(run_dir, result, is_final=is_final) if is_main_process() else None)
    if problem is not None:
        raise OSError(problem)
    # Each run compiles programs of its own.
    jax.clear_caches()
    return result


def _keep(run_dir: Path, result: Outcome, *, is_final: bool) -> str | None:
    """Writes the outcome, and deletes the checkpoints that nobody needs; returns what went wrong."""
    try:
        outcome.write(run_dir, result)
    except OSError as error:
        return f"its outcome cannot be written ({error})"
    if not is_final:
        shutil.rmtree(run_dir / CHECKPOINTS_FOLDER, ignore_errors=True)
    return None


def _measure(config: Config, run_dir: Path, *, is_final: bool) -> Outcome:
    validation = {str(int(row["step"])): row[TOP1] for row in read_metrics(run_dir) if TOP1 in row}
    due = sum(map(config.train.evaluates_after, range(1, config.train.num_steps + 1)))
    check(
        len(validation) == due,
        f"{run_dir} has the record of {len(validation)} of its {due} evaluations: remove it, and it is trained again",
    )
    found = Outcome(num_passes(config), seconds=read_history(run_dir).kept_s, validation=validation)
    with jax.set_mesh(make_mesh(resolve(config.mesh, jax.device_count()))):
        scorer = _Scorer(config, run_dir)
        last = config.train.num_steps
        found = replace(found, train=scorer.top1(last, "train"), flops=found.num_passes * scorer.flops_per_pass)
        if is_final:
            best = best_with_checkpoint(run_dir, validation, open_store(run_dir).steps())
            test = [scorer.top1(step, "test") for step in (best, last)]
            found = replace(found, test_best=test[0], test_final=test[1])
    return found


def best_with_checkpoint(run_dir: Path, validation: Mapping[str, float], steps: Collection[int]) -> int:
    """The step of the best evaluation of which there is a checkpoint, the last of equal ones.

    There is none of the very best if, for example, the disk was full at its save.

    Raises:
        ConfigError: no step of `validation` is among `steps`.
    """
    kept = {int(step): accuracy for step, accuracy in validation.items() if int(step) in steps}
    check(bool(kept), f"{run_dir} has no checkpoint of an evaluation: remove it, and it is trained again")
    return max(kept, key=lambda step: (kept[step], step))


class _Scorer:
    """Evaluates checkpoints of a run, on any of its splits, with one compiled program; on the current mesh."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._task, self._run_dir = Task.of(config), run_dir
        self._program = trace_eval_step(self._task).compile()
        self.flops_per_pass = self._task.flops_per_pass

    def top1(self, step: int, split: str) -> float:
        """The accuracy of the checkpoint of `step` on the images of `split`."""
        dataset = replace(self._task.dataset, test=self._images(split))
        evaluate = make_evaluate(replace(self._task, dataset=dataset), lambda: self._program)
        saved = latest_valid(open_store(self._run_dir), [step], self._task.abstract_state().network)
        return evaluate(saved.state).scores[TOP1]

    def _images(self, split: str) -> Examples:
        return sources.load(replace(self._task.config.data, eval_split=split)).test
