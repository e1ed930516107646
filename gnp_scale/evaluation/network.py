"""The network of a run that exists, for the images of any data set that it takes."""

from collections.abc import Mapping

import jax
from gnp_kernels.trees import path_name

from gnp_scale.config import Config, ConfigError, check
from gnp_scale.data import sources
from gnp_scale.data.dataset import Dataset
from gnp_scale.data.pipeline import check_divisible
from gnp_scale.data.small_sets import READERS
from gnp_scale.models import registry
from gnp_scale.models.registry import Model
from gnp_scale.training.setup import Task

type Shapes = Mapping[str, tuple[int, ...]]
"""Of the parameters, by their paths."""


def task_of_run(config: Config, stored: Shapes, *, has_own_classes: bool) -> Task:
    """The task of `config` with the network whose parameters have the shapes `stored`.

    It has the number of classes of its run if `has_own_classes`, and else those of the data set.

    Raises:
        ConfigError: as `Task.of`; or the network does not take these images or classes.
    """
    # Nothing is trained.
    check_divisible(config.data, ("eval_batch_size",))
    dataset = sources.load(config.data)
    num_classes = stored["head/dense/bias" if "head/dense/bias" in stored else "head/bias"][0]
    check(
        has_own_classes or num_classes == dataset.num_classes,
        f"the network of the run has {num_classes} classes and the data set {dataset.name} has {dataset.num_classes}: "
        "give a data set with as many, or judge its features with gnp-scale eval RUN --probe",
    )
    model = _model(config, dataset, num_classes)
    _check_shapes(model, dataset, stored)
    return Task.with_network(config, dataset, model)


def _model(config: Config, dataset: Dataset, num_classes: int) -> Model:
    try:
        return registry.create(config.model, dataset.image_shape, num_classes, config.data.batch_size)
    except ConfigError as error:
        raise ConfigError(f"{_misfit(dataset)} ({error}): {_advice(dataset.name)}") from error


def _check_shapes(model: Model, dataset: Dataset, stored: Shapes) -> None:
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    shapes = {path_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(params)}
    for path, shape in shapes.items():
        check(
            stored.get(path) == shape,
            f"{_misfit(dataset)} ({path} has the shape {stored.get(path)}, and {shape} for these images): "
            f"{_advice(dataset.name)}",
        )


def _misfit(dataset: Dataset) -> str:
    height, width, channels = dataset.image_shape
    return f"the network of the run does not take the images of {dataset.name}, {height}x{width} in {channels} channels"


def _advice(name: str) -> str:
    if name in READERS and name != "synthetic":
        return "choose a data set of such images as it was trained on"
    option = "--data.synthetic-image-size" if name == "synthetic" else "--data.image-size"
    return f"set {option} to the size that it was trained on, or choose a data set with as many channels"
