"""What `gnp-scale eval` does with a run that exists: the average of its checkpoints, and probes of its features."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from launcher import run

from gnp_scale.checkpoint import load_average
from gnp_scale.checkpoint.restore import newest_intact
from gnp_scale.checkpoint.store import Store
from gnp_scale.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.evaluation.existing import evaluate_run, probe_run
from gnp_scale.loop import train
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task

pytestmark = [pytest.mark.usefixtures("unoptimized"), pytest.mark.slow]

BASE = Config(
    data=DataConfig("synthetic", synthetic_num_examples=200, synthetic_image_size=8, batch_size=32, eval_batch_size=32),
    model=ModelConfig("resnet20"),
    optim=OptimConfig("sgd", learning_rate=0.05),
    mesh=MeshConfig(replica=2, fsdp=4, tensor=1),
    train=TrainConfig(num_steps=6, log_every_steps=6, eval_every_steps=6, ema_decay=0.5),
    checkpoint=CheckpointConfig(every_steps=2, keep_last=3),
)
FOUR_CLASSES = replace(BASE, data=replace(BASE.data, synthetic_num_classes=4))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(BASE, folder)
    return folder


@pytest.fixture
def task():
    with jax.set_mesh(make_mesh(BASE.mesh)):
        yield Task.of(BASE)


def test_the_average_is_that_of_numpy_and_keeps_the_rest_of_the_newest(run_dir, task):
    store, abstract = Store(run_dir), task.abstract_state()
    states = [jax.device_get(newest_intact(store, [step], abstract)[1]) for step in (6, 4, 2)]
    step, averaged = load_average(run_dir, abstract, 3)
    assert step == 6
    for name in ("params", "batch_stats", "ema"):
        mean = jax.tree.map(lambda *x: (x[0] + x[1] + x[2]) / np.float32(3), *(getattr(s, name) for s in states))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(getattr(averaged, name)), mean)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(averaged.opt_state), states[0].opt_state)
    assert jax.tree.map(lambda x: x.sharding, averaged) == jax.tree.map(lambda x: x.sharding, abstract)
    _, alone = load_average(run_dir, abstract, 1)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(alone), states[0])


def test_too_few_checkpoints_to_average_are_one_line(run_dir, task):
    with pytest.raises(ConfigError, match=r"holds 3 intact checkpoints, .* with --checkpoint.keep-last 4$"):
        load_average(run_dir, task.abstract_state(), 4)


def test_a_probe_judges_the_average_on_a_data_set_with_other_classes(run_dir, tmp_path):
    """Its patterns are as easy as those of the run, and 4 of its 10."""
    step, scores = probe_run(FOUR_CLASSES, run_dir, tmp_path / "pictures", 2)
    assert step == 6
    assert scores["probe/linear_top1"] == scores["probe/knn_top1"] == 1.0
    assert (scores["probe/num_train_images"], scores["probe/num_eval_images"]) == (200, 50)
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["confusion.png", "worst.png"]


def test_two_processes_and_other_meshes_give_the_same_probe(run_dir, tmp_path):
    """Except for rounding: at most one of the 50 images, or of the 20 held out, may change sides."""
    _, here = probe_run(BASE, run_dir)
    _, there = probe_run(replace(BASE, mesh=MeshConfig(1, 4, 2)), run_dir)
    lines = run(tmp_path, "eval", str(run_dir), "--probe", num_processes=2).splitlines()
    (two,) = [json.loads(line) for line in lines if line.startswith("{")]
    for other in (there, two):
        for name, value in here.items():
            np.testing.assert_allclose(other[name], value, atol=0.051 if "top1" in name else 0, err_msg=name)


def test_images_that_do_not_fit_the_network_are_one_line(run_dir):
    grey = replace(BASE, data=DataConfig(batch_size=32, eval_batch_size=32))
    with pytest.raises(ConfigError, match=r"does not take the images of digits, 8x8 in 1 channels .*--data.image-size"):
        probe_run(grey, run_dir)
    with pytest.raises(ConfigError, match="has 10 classes and the data set synthetic has 4: add --probe"):
        evaluate_run(FOUR_CLASSES, run_dir)
