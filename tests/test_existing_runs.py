"""What `gnp-scale eval` does with a run that exists: the average of its checkpoints, and probes of its features."""

import json
from dataclasses import replace

import numpy as np
import pytest
from launcher import run
from run_folders import make_run

from gnp_scale.commands.common import config_of_run
from gnp_scale.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    GnpConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.evaluation.existing import evaluate_run, probe_run, working
from gnp_scale.loop import train

pytestmark = [pytest.mark.usefixtures("unoptimized"), pytest.mark.slow]

BASE = Config(
    data=DataConfig("synthetic", synthetic_num_examples=200, synthetic_image_size=8, batch_size=32, eval_batch_size=32),
    model=ModelConfig("vit_mu", patch_size=4, depth=1, width=32, num_heads=2),
    gnp=GnpConfig(r=0, alpha=0),
    optim=OptimConfig("sgd", learning_rate=0.05),
    mesh=MeshConfig(replica=1, fsdp=8, tensor=1),
    train=TrainConfig(num_steps=6, log_every_steps=6, eval_every_steps=6),
    checkpoint=CheckpointConfig(every_steps=2, keep_last=3),
)
FOUR_CLASSES = replace(BASE, data=replace(BASE.data, synthetic_num_classes=4))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(BASE, folder)
    return folder


@pytest.mark.long
def test_a_probe_judges_the_average_on_a_data_set_with_other_classes(run_dir, tmp_path):
    """Its patterns are as easy as those of the run, and 4 of its 10."""
    step, scores = probe_run(FOUR_CLASSES, run_dir, tmp_path / "pictures", 2)
    assert step == 6
    assert scores["probe/linear_top1"] == scores["probe/knn_top1"] == 1.0
    assert (scores["probe/num_train_images"], scores["probe/num_eval_images"]) == (200, 50)
    # There is no picture of wrong guesses, because there are none.
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["confusion.png"]


@pytest.mark.long
def test_two_processes_with_another_mesh_give_the_same_probe(run_dir, tmp_path):
    """Except for rounding: at most one of the 50 images, or of the 20 held out, may change sides."""
    _, here = probe_run(BASE, run_dir)
    mesh = ("--mesh.replica", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")
    lines = run(tmp_path, "eval", str(run_dir), "--probe", *mesh, num_processes=2).splitlines()
    (there,) = [json.loads(line) for line in lines if line.startswith("{")]
    for name, value in here.items():
        np.testing.assert_allclose(there[name], value, atol=0.051 if "top1" in name else 0, err_msg=name)


def test_a_batch_of_training_that_the_devices_cannot_share_does_not_matter(run_dir):
    odd = replace(BASE, data=replace(BASE.data, batch_size=33))
    assert evaluate_run(odd, run_dir) == evaluate_run(BASE, run_dir)


def test_images_that_do_not_fit_the_network_are_one_line(run_dir):
    grey = replace(BASE, data=DataConfig(batch_size=32, eval_batch_size=32))
    with pytest.raises(
        ConfigError, match=r"does not take the images of digits, 8x8 in 1 channels .*: choose a data set of such"
    ):
        probe_run(grey, run_dir)
    small = replace(BASE, data=replace(BASE.data, synthetic_image_size=4))
    with pytest.raises(ConfigError, match=r"4x4 in 3 channels .*: set --data.synthetic-image-size to the size"):
        probe_run(small, run_dir)
    with pytest.raises(
        ConfigError, match="has 10 classes and the data set synthetic has 4: give a data set with as many, or"
    ):
        evaluate_run(FOUR_CLASSES, run_dir)


def test_another_data_set_begins_from_all_of_its_examples(tmp_path):
    """What the run has drawn, mislabelled or held out is no choice for other images."""
    data = DataConfig("synthetic", synthetic_num_examples=64, label_noise=0.4, draw_seed=3, holdout=0.5, batch_size=16)
    make_run(tmp_path / "run", Config(data=data), {5: 0.5})

    def config(*flags):
        return config_of_run(tmp_path / "run", flags, "eval", "", ()).data

    assert config("--data.batch-size", "8") == replace(data, batch_size=8)
    assert config("--data.name", "digits") == DataConfig("digits", batch_size=16)
    assert config("--data.name", "digits", "--data.holdout", "0.5") == DataConfig("digits", batch_size=16, holdout=0.5)


def test_the_seed_of_a_draw_is_left_out_where_nothing_is_drawn(tmp_path):
    """docs/evaluation.md: `--data.label-noise 0` judges a run by the right labels."""
    data = DataConfig("synthetic", label_noise=0.4, draw_seed=3, batch_size=16)
    make_run(tmp_path / "run", Config(data=data), {5: 0.5})
    few = replace(data, num_examples=64)
    make_run(tmp_path / "few", Config(data=few), {5: 0.5})

    def config(run, *flags):
        return config_of_run(tmp_path / run, flags, "eval", "", ()).data

    assert config("run", "--data.label-noise", "0") == replace(data, label_noise=0, draw_seed=0)
    # The examples of the run, without its noise.
    assert config("few", "--data.label-noise", "0") == replace(few, label_noise=0)
    with pytest.raises(ConfigError, match=r"data\.draw_seed is 4, but has an effect only with"):
        config("run", "--data.label-noise", "0", "--data.draw-seed", "4")
    with pytest.raises(ConfigError, match=r"data\.label_noise is 2"):
        config("run", "--data.label-noise", "2")


def test_an_evaluation_says_which_options_have_no_effect(capsys):
    data = DataConfig("digits", batch_size=16, eval_batch_size=16, image_size=99)
    with working(Config(data=data), None):
        pass
    assert "without effect, because the images of digits are not encoded: data.image_size 99" in capsys.readouterr().err
