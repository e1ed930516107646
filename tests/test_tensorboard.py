"""What a user sees in TensorBoard: the test starts the real server on loopback and reads it over HTTP."""

import numpy as np
import pytest
from tensorboard_server import Server

from gnp_scale import recipe
from gnp_scale.config import Config, GnpConfig, OptimConfig
from gnp_scale.data.dataset import Dataset, Split
from gnp_scale.monitoring import tensorboard
from gnp_scale.monitoring.confusion import Guesses
from gnp_scale.monitoring.metrics import MetricWriter, read_metrics
from gnp_scale.monitoring.tensorboard import CHARTS, visible

NAMES = {
    "train": ("loss", "loss_perturbed", "accuracy"),
    "gnp": (
        "grad_norm",
        "grad_norm_perturbed",
        "update_grad_norm",
        "cosine",
        "curvature",
        "r",
        "alpha",
        "lambda",
        "on",
    ),
    "optim": ("learning_rate", "update_norm", "param_norm"),
    "perf": ("images_per_s", "step_ms", "data_wait_ms", "mfu", "gnp_tax", "goodput"),
    "eval": ("loss", "top1", "top5"),
}
TAGS = [f"{group}/{name}" for group, names in NAMES.items() for name in names]
TEST = Split(np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 1, 2], np.int32))
DATASET = Dataset("three", TEST, TEST, 3, (0.5,), (0.25,), class_names=("cat", "dog", "eel"))
GUESSES = Guesses(TEST.label, np.array([0, 1, 0, 0], np.int32), np.ones(4, np.float32), np.ones(4, np.float32), 3)


def log_steps(writer, steps, offset):
    for step in steps:
        writer.write(step, {tag: offset + step + i / 8 for i, tag in enumerate(TAGS)})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run that logged 5 steps, was killed, and resumed from step 2 to 6 with other numbers."""
    run_dir = tmp_path_factory.mktemp("run")
    with MetricWriter(run_dir, is_writer=True, start_step=0) as writer:
        log_steps(writer, range(1, 6), offset=100)
        assert writer.board is not None
        writer.board.guesses(4, GUESSES, DATASET)
    with MetricWriter(run_dir, is_writer=True, start_step=2) as writer:
        assert writer.board is not None
        writer.board.environment(2, {"device": "TPU v5e"})
        writer.board.config(Config())
        writer.board.images(2, "train/images", np.zeros((3, 8, 8, 1), np.float32), [0.5], [0.25])
        log_steps(writer, range(3, 7), offset=0)
        writer.board.guesses(4, GUESSES, DATASET)
    return run_dir


@pytest.fixture(scope="module", params=["true", "false"], ids=["fast loader", "plain loader"])
def server(request, run_dir, tmp_path_factory):
    """TensorBoard reads event files in two ways, which treat a restart differently."""
    server = Server(run_dir, tmp_path_factory.mktemp("server") / "log", request.param)
    try:
        server.start()
        server.until(lambda: TAGS[-1] in server.json("scalars/tags").get(".", ()), TAGS[-1])
        server.until(lambda: server.points(TAGS[-1])[-1][0] == 6, "the last point")
        yield server
    finally:
        server.close()


def test_scalars_have_the_names_and_numbers_of_the_jsonl(server, run_dir):
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert set(server.json("scalars/tags")["."]) == set(TAGS)
    for tag in TAGS:
        assert server.points(tag) == [(row["step"], row[tag]) for row in rows], tag


def test_nothing_but_the_run_itself_is_listed(server):
    """An hparams run in its own folder would appear as another run."""
    assert list(server.json("scalars/tags")) == ["."]


def test_charts_of_the_penalty_find_their_metrics(server):
    """One each: of several, a person could not tell which line is which."""
    layout = server.json("custom_scalars/layout")
    found = {}
    for category in layout["category"]:
        for chart in category["chart"]:
            (pattern,) = chart["multiline"]["tag"]
            (tag,) = server.json("custom_scalars/scalars", run=".", tag=pattern)["tag_to_events"]
            found.setdefault(category["title"], {})[chart["title"]] = tag
    assert found == CHARTS


def test_configuration_is_shown_as_a_block_of_json(server):
    assert sorted(server.json("text/tags")["."]) == [
        f"{name}/text_summary" for name in ("config", "environment", "eval/confusions")
    ]
    (text,) = server.json("text/text", run=".", tag="config/text_summary")
    assert "<code" in text["text"]
    assert "learning_rate" in text["text"]
    (text,) = server.json("text/text", run=".", tag="environment/text_summary")
    assert text["step"] == 2
    assert "TPU v5e" in text["text"]


def log_run(run_dir, config, top1):
    """A run that is killed, starts again from the beginning, and is resumed once more."""
    for start in (0, 0, 1):
        with MetricWriter(run_dir, is_writer=True, start_step=start) as writer:
            assert writer.board is not None
            if start == 0:
                writer.board.config(config)
            writer.write(start + 1, {"train/loss": 1.0, "eval/top1": top1 / (2 - start), "eval/loss": 2.0})


def session_groups(server, *hparams):
    """The rows of the HPARAMS tab with the columns `hparams`: the run, its values, and its metrics."""
    request = {
        "experimentName": "",
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"hparam": name} for name in hparams],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = server.json("hparams/session_groups", request)["sessionGroups"]
    return {
        group["sessions"][0]["name"]: (
            [group["hparams"][name] for name in hparams],
            {metric["name"]["tag"]: (metric["trainingStep"], metric["value"]) for metric in group["metricValues"]},
        )
        for group in groups
    }


def test_hparams_list_each_run_of_a_sweep_once_with_what_differs_first(tmp_path):
    """Also where one run has no number and another has one."""
    configs = {"a": Config(), "b": Config(gnp=GnpConfig(r=0.25), optim=OptimConfig(clip_norm=5.0))}
    for name, config in configs.items():
        log_run(tmp_path / "runs" / name, config, top1=config.gnp.r)
    server = Server(tmp_path / "runs", tmp_path / "log", "true")
    try:
        server.start()
        server.until(lambda: len(server.json("scalars/tags")) == 2, "both runs")
        experiment = server.json("hparams/experiment", {"experimentName": ""})
        differing = ["gnp.r", "optim.clip_norm"]
        infos = experiment["hparamInfos"]
        assert [info["name"] for info in infos[:2]] == [info["name"] for info in infos if info["differs"]] == differing
        assert len(infos) == len(recipe.flatten(Config()))
        metrics = [metric["name"] for metric in experiment["metricInfos"]]
        assert metrics == [{"group": "", "tag": tag} for tag in ("eval/loss", "eval/top1", "train/loss")]
        same = {"eval/loss": (2, 2.0), "train/loss": (2, 1.0)}
        assert session_groups(server, *differing) == {
            "a": ([0.05, "None"], {**same, "eval/top1": (2, pytest.approx(0.05))}),
            "b": ([0.25, 5.0], {**same, "eval/top1": (2, 0.25)}),
        }
    finally:
        server.close()


def test_images_arrive_enlarged_and_unnormalised(server):
    assert sorted(server.json("images/tags")["."]) == ["eval/confusion_matrix", "eval/worst_images", "train/images"]
    image = server.image("train/images", step=2)
    assert image.shape == (128, 3 * 128, 3)
    assert (image == 128).all(), "a normalised 0 with mean 0.5 is middle grey"


def test_each_start_has_a_file_that_is_read_after_the_others(tmp_path, monkeypatch):
    """For any number of starts within a second, and any jump of the clock."""
    names = []
    for now in (1.8e9, 1.8e9, 1.8e9 + 0.5, 1.7e9, 5.0, 1.9e9):
        monkeypatch.setattr(tensorboard.time, "time", lambda now=now: now)
        before = set(tmp_path.iterdir())
        with MetricWriter(tmp_path, is_writer=True, start_step=0):
            names += sorted(path.name for path in set(tmp_path.iterdir()) - before if "tfevents" in path.name)
    assert len(names) == 6
    assert names == sorted(names)


def test_guesses_of_a_step_that_was_repeated_are_shown_once(server):
    """As a table, the accuracies of the classes, the matrix and the images."""
    (text,) = server.json("text/text", run=".", tag="eval/confusions/text_summary")
    assert text["step"] == 4
    assert "<td>dog</td>\n<td>cat</td>\n<td>1</td>\n<td>50.0%</td>" in text["text"]
    ((_, step, buckets),) = server.json("histograms/histograms", run=".", tag="eval/class_accuracy")
    assert (step, sum(count for *_, count in buckets)) == (4, 3)
    assert server.image("eval/confusion_matrix", step=4).shape[2] == 3
    assert server.image("eval/worst_images", step=4).shape == (180, 264, 3)


@pytest.mark.parametrize(
    ("side", "expected_side"), [(8, 128), (28, 140), (32, 128), (128, 128), (224, 224)], ids=lambda side: str(side)
)
def test_only_small_images_are_enlarged(side, expected_side):
    assert visible(np.zeros((2, side, side, 3)), [0, 0, 0], [1, 1, 1]).shape == (2, expected_side, expected_side, 3)


def test_visible_undoes_the_normalisation_and_clips():
    mean, std = np.array([0.5, 0.4, 0.3]), np.array([0.2, 0.3, 0.4])
    pixel_BxHxWxC = np.random.default_rng(0).integers(0, 256, (2, 130, 130, 3), np.uint8)
    normalised_BxHxWxC = (pixel_BxHxWxC / 255 - mean[None, None, None]) / std[None, None, None]
    np.testing.assert_array_equal(visible(normalised_BxHxWxC, list(mean), list(std)), pixel_BxHxWxC)
    assert (visible(np.full((1, 1, 1, 3), 99.0), list(mean), list(std)) == 255).all()
