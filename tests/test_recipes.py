"""Every recipe loads, names its source, and its step can be traced on 8 devices, with synthetic images."""

import dataclasses
from pathlib import Path

import pytest

from gnp_scale import recipe
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import resolve
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

CONFIGS = Path(__file__).parent.parent / "configs"
IMAGE_SIZES = {"cifar10": 32, "fashion_mnist": 28, "digits": 8}
NAMES = [f"{path}:{name}" for path in sorted(CONFIGS.glob("*.py")) for name in recipe.functions(path)]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.rpartition("/")[2])
def test_a_recipe_is_a_step(name, set_mesh):
    config = recipe.load(name)
    size = IMAGE_SIZES.get(config.data.name, config.data.image_size)
    data = dataclasses.replace(config.data, name="synthetic", synthetic_image_size=size)
    shape = resolve(config.mesh, 8)
    set_mesh(shape.replica, shape.fsdp, shape.tensor)
    task = Task.of(dataclasses.replace(config, data=data))
    after, _ = make_train_step(task).trace(task.abstract_state(), task.abstract_batch(), kind=StepKind.FULL).out_info
    assert after.step.shape == ()


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.rpartition("/")[2])
def test_a_recipe_says_paper_command_and_hardware(name):
    path, _, function = name.partition(":")
    text = recipe.functions(Path(path))[function].__doc__ or ""
    for word in ("Paper:", "Command: gnp-scale train", "Hardware:"):
        assert word in text
