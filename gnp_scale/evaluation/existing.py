"""The scores of a run that exists, or a probe of its features; writes nothing into its folder."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax

from gnp_scale.checkpoint import load_average, load_newest, stored_shapes
from gnp_scale.config import Config
from gnp_scale.data.dataset import Dataset
from gnp_scale.data.sources import unread_advice
from gnp_scale.evaluation.features import Features, collect
from gnp_scale.evaluation.knn import NUM_NEIGHBOURS, knn_top1
from gnp_scale.evaluation.linear import LinearProbe, linear_probe
from gnp_scale.evaluation.network import task_of_run
from gnp_scale.mesh import make_mesh
from gnp_scale.monitoring.confusion import Guesses, line
from gnp_scale.monitoring.pictures import make_folder, write_pictures
from gnp_scale.resilience.signals import take_back
from gnp_scale.resilience.watchdog import Watchdog
from gnp_scale.run.agreement import check_agreement
from gnp_scale.run.data_sizes import check_data_agree
from gnp_scale.run.messages import announce
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.store import Folder
from gnp_scale.training.evaluate import make_evaluate, trace_eval_step
from gnp_scale.training.setup import Task
from gnp_scale.training.state import NetworkState

_NUM_TOLD = 5
"""Confusions that `gnp-scale eval` prints."""


def evaluate_run(
    config: Config, run_dir: Folder | None, pictures: Path | None = None, num_averaged: int | None = None
) -> tuple[int, dict[str, float]]:
    """(step, scores) of the newest checkpoint in `run_dir`, evaluated as `config` says; writes nothing there.

    Without a folder it evaluates the weights of `model.init_from`. Prints the most frequent confusions, and puts
    pictures of them into the folder `pictures` if it is given. With `num_averaged`, the average of so many checkpoints
    is evaluated, and the step is that of the newest.

    Raises:
        ConfigError: there is no checkpoint, or there are too few to average; the configuration is wrong for the data or
            the machine; or `pictures` cannot be made.
    """
    with working(config, pictures) as stages:
        task = task_of(config, run_dir, has_own_classes=False)
        step, state = load(run_dir, task, num_averaged, stages)
        with stages.enter(Stage.COMPILE, step):
            eval_step = trace_eval_step(task).compile()
        with stages.enter(Stage.EVALUATE, step):
            scores, guesses = make_evaluate(task, lambda: eval_step)(state)
            _tell_guesses(guesses(), task.dataset, pictures)
            return step, scores


def probe_run(
    config: Config, run_dir: Folder | None, pictures: Path | None = None, num_averaged: int | None = None
) -> tuple[int, dict[str, float]]:
    """As `evaluate_run`, but the scores, confusions and pictures are those of a linear probe, and there are the scores
    of nearest neighbours.

    Both classify the features of the network. The data set of `config` need not be that of the run, nor have as many
    classes. The features of its training and evaluated images are in memory as float32, divided among the devices that
    share the examples.

    Raises:
        ConfigError: as above; or the images do not fit the network.
    """
    with working(config, pictures) as stages:
        task = task_of(config, run_dir, has_own_classes=True)
        step, state = load(run_dir, task, num_averaged, stages)
        with stages.enter(Stage.EVALUATE, step):
            train, test = collect(task, state, stages)
            linear = linear_probe(train, test, task.dataset.num_classes, len(task.dataset.test), stages)
            neighbours = knn_top1(train, test, stages)
            _tell_guesses(linear.guesses, task.dataset, pictures)
            return step, _linear_scores(linear) | _neighbour_scores(neighbours) | _sizes(train, test)


def _linear_scores(linear: LinearProbe) -> dict[str, float]:
    return {
        "probe/linear_top1": linear.top1,
        "probe/linear_l2": linear.strength,
        "probe/linear_held_out_top1": linear.held_out_top1,
    }


def _neighbour_scores(top1: dict[int, float]) -> dict[str, float]:
    best, *others = NUM_NEIGHBOURS
    return {"probe/knn_top1": top1[best], "probe/knn_k": best} | {f"probe/knn_{k}_top1": top1[k] for k in others}


def _sizes(train: Features, test: Features) -> dict[str, float]:
    """How many images count in each split, and how many features an image has."""
    return {
        "probe/num_train_images": train.num_counted(),
        "probe/num_eval_images": test.num_counted(),
        "probe/num_features": train.feature.shape[-1],
    }


@contextlib.contextmanager
def working(config: Config, pictures: Path | None) -> Iterator[Stages]:
    """The stages of this process, under a watchdog, on the mesh of `config`; makes the folder of the pictures."""
    stages = Stages()
    if pictures is not None and is_main_process():
        make_folder(pictures)
    with Watchdog(stages, None), jax.set_mesh(make_mesh(config.mesh)):
        take_back()
        check_agreement(config)
        advice = unread_advice(config.data)
        if advice is not None:
            announce(advice)
        yield stages


def task_of(config: Config, run_dir: Folder | None, *, has_own_classes: bool) -> Task:
    """The task of a run, or without a folder that of a recipe.

    A file of weights has a head for any number of classes: a new one, if its own has another number.
    """
    if run_dir is None:
        return Task.of(config)
    return task_of_run(config, stored_shapes(run_dir), has_own_classes=has_own_classes)


def load(run_dir: Folder | None, task: Task, num_averaged: int | None, stages: Stages) -> tuple[int, NetworkState]:
    """(step, state) of the newest checkpoint, or of the average of some, or of a file of weights."""
    check_data_agree(task.dataset.sizes, task.dataset.class_names, task.dataset.fingerprints)
    with stages.enter(Stage.RESTORE, 0):
        if run_dir is None:
            assert task.initial is not None, "the command has checked that there is a file"
            announce(task.initial.check().line())
            return 0, task.init_state().network
        if num_averaged is None:
            return load_newest(run_dir, task.abstract_state().network)
        return load_average(run_dir, task.abstract_state().network, num_averaged)


def _tell_guesses(guesses: Guesses, dataset: Dataset, pictures: Path | None) -> None:
    if not is_main_process():
        return
    announce(line(guesses, dataset.class_name, _NUM_TOLD))
    if pictures is not None:
        write_pictures(pictures, guesses, dataset)
