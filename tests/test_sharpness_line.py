"""The line between two networks: its ends are the networks, and statistics fit the parameters in between."""

import contextlib
import json
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixed_losses import quadratic, quadratic_sum
from launcher import run
from PIL import Image
from run_folders import make_run

from gnp_scale.config import CheckpointConfig, Config, ConfigError, DataConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.augment import normalise
from gnp_scale.data.dataset import UNREADABLE, Rows, Split
from gnp_scale.evaluation.existing import evaluate_run
from gnp_scale.loop import train
from gnp_scale.sharpness import examples, line, report
from gnp_scale.sharpness.line import Line
from gnp_scale.sharpness.measure import Report, measure_run
from gnp_scale.sharpness.objective import value
from gnp_scale.sharpness.settings import Settings
from gnp_scale.training.setup import Task

pytestmark = pytest.mark.usefixtures("unoptimized")

FIRST, SECOND = np.flatnonzero(line.STEPS == 0)[0], np.flatnonzero(line.STEPS == 1)[0]
ONLY_LINE = Settings(measures=(), num_examples=100)


def test_the_barrier_is_the_height_above_the_chord():
    """Outside of the two networks the loss does not count; below the chord there is no barrier."""
    steps = np.array([-0.25, 0, 0.5, 1, 1.25])
    hill = Line(steps, np.array([9.0, 1, 4, 3, 9]), np.array([0.1, 0.9, 0.5, 0.7, 0.1]))
    assert hill.barrier == pytest.approx(4 - 2)
    assert hill.top1_barrier == pytest.approx(0.8 - 0.5)
    valley = Line(steps, np.array([9.0, 1, 0.5, 3, 9]), np.ones(5))
    assert (valley.barrier, valley.top1_barrier) == (0, 0)


def test_the_steps_hold_both_networks_and_go_a_quarter_beyond():
    assert (line.STEPS[0], line.STEPS[FIRST], line.STEPS[SECOND], line.STEPS[-1]) == (-0.25, 0, 1, 1.25)
    np.testing.assert_allclose(np.diff(line.STEPS), 0.05)


def test_the_loss_along_the_line_is_that_of_a_quadratic(set_mesh):
    set_mesh()
    used, fixed = quadratic(num_groups=2, num=8)
    w, v = np.array([1.0, -2.0, 0.5, 3.0], np.float32), np.array([0.0, 1.0, 2.0, -1.0], np.float32)
    hessian = np.mean([a.T @ a for a in used.reshape(-1, 4, 4)], axis=0)
    for t in (-0.25, 0.0, 0.4, 1.0):
        found = value(quadratic_sum, line.at(({"w": jnp.asarray(w)}, {"w": jnp.asarray(v)}), np.float32(t)), fixed)
        x = w + t * (v.astype(np.float64) - w)
        np.testing.assert_allclose(found, x @ hessian @ x / 2, rtol=1e-5)


CNN = Config(
    data=DataConfig(batch_size=16, eval_batch_size=50),
    model=ModelConfig("cnn_s", num_bn_groups=2, dtype="bfloat16"),
    train=TrainConfig(label_smoothing=0.1),
)


def test_batch_statistics_are_those_of_the_parameters_at_each_step(set_mesh):
    """Of the first layer, by its definition: means over batches of means and variances of the convolved images."""
    set_mesh(2)
    task = Task.of(CNN)
    ends = tuple(jax.jit(task.model.init)(jax.random.key(number))[0] for number in (0, 1))
    stats = task.init_state().batch_stats
    settings = Settings(num_examples=120)
    found = list(line._statistics(task, ends, stats, settings, contextlib.nullcontext))
    assert len(found) == len(line.STEPS)
    # Two whole batches; the last 20 examples are left out.
    parts = examples.read(task, stats, 100, 50, settings.seed, contextlib.nullcontext).parts
    kernels = [np.asarray(jax.device_get(params["stages"]["0"]["conv"]["kernel"]), np.float64) for params in ends]
    for number in (0, 12, SECOND):
        t = line.STEPS[number]
        means, variances = [], []
        for image in jax.device_get(parts["image"]):
            x = np.asarray(normalise(jnp.asarray(image), task.dataset), np.float64)
            y = convolved(x, (1 - t) * kernels[0] + t * kernels[1])
            means.append(y.mean((0, 1, 2)))
            variances.append(y.var((0, 1, 2)))
        got = found[number]["stages"]["0"]["norm"]
        np.testing.assert_allclose(got["mean"], np.mean(means, axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got["variance"], np.mean(variances, axis=0), rtol=1e-4)


@dataclass(frozen=True)
class Broken(Split):
    """Two consecutive images of seven, also the last one, cannot be used."""

    def read(self, chosen_B: np.ndarray, draw_BxD: np.ndarray | None) -> Rows:
        rows, bad_B = super().read(chosen_B, draw_BxD), broken(chosen_B)
        rows["image"][bad_B], rows["label"][bad_B] = 0, UNREADABLE
        return rows


def broken(number: np.ndarray) -> np.ndarray:
    return number % 7 < 2


def test_an_image_that_cannot_be_used_is_not_in_the_statistics(set_mesh):
    """Nor is a black one. The next example takes its place, as in the training pass of which they are."""
    set_mesh(2)
    task = Task.of(CNN)
    state = task.init_state()
    split = task.dataset.train
    assert isinstance(split, Split)
    image, label = split.image[:1401], split.label[:1401]
    number = np.arange(len(label))
    assert broken(number[-1])
    while broken(number).any():
        number = np.where(broken(number), (number + 1) % len(label), number)

    def found(train: Split):
        changed = replace(task, dataset=replace(task.dataset, train=train))
        ends, stats = (state.params, state.params), state.batch_stats
        return next(line._statistics(changed, ends, stats, Settings(num_examples=100), contextlib.nullcontext))

    jax.tree.map(np.testing.assert_array_equal, found(Broken(image, label)), found(Split(image[number], label)))


def test_frozen_statistics_are_not_computed_anew(set_mesh):
    set_mesh()
    task = Task.of(replace(CNN, optim=OptimConfig(frozen=("stages/0/norm/*",))))
    ends = tuple(jax.jit(task.model.init)(jax.random.key(number))[0] for number in (0, 1))
    stats = jax.tree.map(lambda x: x + 0.5, task.init_state().batch_stats)
    found = next(line._statistics(task, ends, stats, Settings(num_examples=50), contextlib.nullcontext))["stages"]
    jax.tree.map(np.testing.assert_array_equal, found["0"], stats["stages"]["0"])
    assert not np.any(found["1"]["norm"]["mean"] == stats["stages"]["1"]["norm"]["mean"])


def test_fewer_training_examples_than_a_batch_give_statistics(set_mesh):
    set_mesh(2)
    data = DataConfig("synthetic", batch_size=16, eval_batch_size=64, synthetic_num_examples=41, synthetic_image_size=8)
    task = Task.of(replace(CNN, data=data))
    state = task.init_state()
    found = next(line._statistics(task, (state.params,) * 2, state.batch_stats, Settings(), contextlib.nullcontext))
    few = examples.read(task, state.batch_stats, 40, 40, 0, contextlib.nullcontext)
    image = np.asarray(normalise(jax.device_get(few.parts["image"])[0], task.dataset), np.float64)
    y = convolved(image, np.asarray(jax.device_get(state.params["stages"]["0"]["conv"]["kernel"]), np.float64))
    np.testing.assert_allclose(found["stages"]["0"]["norm"]["mean"], y.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)


def convolved(x_BxHxWxC, kernel):
    """3x3 with stride 2, with a border of zeros."""
    height, width = x_BxHxWxC.shape[1:3]
    padded = np.pad(x_BxHxWxC, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return sum(
        np.einsum("bhwc,cd->bhwd", padded[:, i : i + height : 2, j : j + width : 2], kernel[i, j])
        for i in range(3)
        for j in range(3)
    )


OTHERS = {
    "another width": ({"width": 32}, r"model.width 16 -> 32"),
    "another pool": ({"pool": "token"}, r"model.pool average -> token"),
}


@pytest.mark.parametrize(("changed", "part"), OTHERS.values(), ids=OTHERS)
def test_another_network_is_refused_in_one_line(changed, part):
    config = Config(model=ModelConfig("vit_mu", width=16))
    other = replace(config, model=replace(config.model, **changed))
    with pytest.raises(ConfigError, match=rf"runs/b has another network \({part}\): give --to") as error:
        line.check_same_network(config, other, "runs/b")
    assert "\n" not in str(error.value)


def test_how_a_network_was_trained_does_not_matter():
    config = Config(model=ModelConfig("vit_mu"))
    other = replace(config, model=replace(config.model, dropout=0.1, drop_path=0.1, dtype="bfloat16", head_bias=1.0))
    line.check_same_network(config, other, "runs/b")


def test_a_line_is_written_as_words_numbers_and_a_picture(tmp_path):
    """Also if the loss overflows at some step."""
    losses = np.where(line.STEPS < 0, np.inf, line.STEPS)
    found = Report(7, {"sharpness/loss": 0.5}, line=Line(line.STEPS, losses, np.full(31, 0.25)), other_step=9)
    text = list(report.lines(found, ONLY_LINE))
    assert text[1].split() == ["to", "step", "9", "by", "-0.25", "0", "0.25", "0.5", "0.75", "1", "1.25"]
    assert text[3].split() == ["accuracy", *["25.00%"] * 7]
    report.write(tmp_path, "runs/a", found, ONLY_LINE, "runs/b")
    content = json.loads((tmp_path / "sharpness.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert (content["line"]["to"], content["line"]["to_step"], content["line"]["loss"][0]) == ("runs/b", 9, None)
    picture = np.asarray(Image.open(tmp_path / "line.png"))
    assert (picture < 128).any(axis=2).mean() > 0.002
    assert len(list(tmp_path.glob("events.*"))) == 1


RUN = Config(
    data=DataConfig(batch_size=64, eval_batch_size=120),
    model=ModelConfig("vit_mu", patch_size=4, width=16, num_heads=2),
    optim=OptimConfig("sgd", learning_rate=0.1),
    train=TrainConfig(num_steps=10, log_every_steps=5, eval_every_steps=10),
    checkpoint=CheckpointConfig(keep_best=0),
)


@pytest.mark.long
def test_the_ends_of_the_line_between_two_runs_are_what_an_evaluation_finds(tmp_path):
    """They have other optimizers, batch sizes and types; the second one evaluates its moving average."""
    others = replace(
        RUN,
        data=replace(RUN.data, batch_size=32),
        model=replace(RUN.model, dropout=0.1),
        optim=OptimConfig("adamw", learning_rate=1e-2),
        train=replace(RUN.train, seed=1, ema_decay=0.5),
    )
    folders = [tmp_path / name for name in ("a", "b", "wide")]
    for config, folder in zip((RUN, others), folders[:2], strict=True):
        train(config, folder)
    make_run(folders[2], replace(RUN, model=replace(RUN.model, width=32)), {})
    before = {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")}
    options = ["--to", str(folders[1]), "--examples", "100", "--output", str(tmp_path / "out"), "--mesh.fsdp", "-1"]
    said = run(tmp_path, "sharpness", str(folders[0]), *options, num_devices=2)
    assert "largest eigenvalues" not in said
    content = json.loads((tmp_path / "out" / "sharpness.json").read_text())
    for config, folder, number in ((RUN, folders[0], FIRST), (others, folders[1], SECOND)):
        top1 = evaluate_run(config, folder)[1]["eval/top1"]
        np.testing.assert_allclose(content["line"]["top1"][number], top1, atol=1.1 / 360)
    np.testing.assert_allclose(content["line"]["loss"][FIRST], content["scores"]["sharpness/loss"], rtol=1e-5)
    found = measure_run(others, folders[1], ONLY_LINE, None, None, folders[0])
    np.testing.assert_allclose(found.line.losses[FIRST], content["line"]["loss"][SECOND], rtol=1e-4)
    np.testing.assert_allclose(found.line.losses[::-1], content["line"]["loss"], rtol=1e-3)
    assert {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*")} == before
    measured = partial(measure_run, RUN, folders[0], ONLY_LINE, None, None)
    with pytest.raises(ConfigError, match=r"model.width 16 -> 32\): give --to a run of the same network"):
        measured(folders[2])
    with pytest.raises(ConfigError, match="which is the run itself"):
        measured(folders[0])
