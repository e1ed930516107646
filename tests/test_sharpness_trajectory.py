"""The path of a run through its checkpoints: its plane is that of NumPy, its losses are those of the networks there.

T checkpoints, N numbers of a vector, A steps along each direction.
"""

import json
import shutil
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launcher import run
from PIL import Image

from gnp_scale.checkpoint import load_each
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
from gnp_scale.loop import train
from gnp_scale.mesh import make_mesh, sharding
from gnp_scale.sharpness import report, trajectory
from gnp_scale.sharpness.flat import FLAT
from gnp_scale.sharpness.measure import Report, measure_run
from gnp_scale.sharpness.settings import Settings
from gnp_scale.sharpness.trajectory import Trajectory
from gnp_scale.training.setup import Task

pytestmark = [
    pytest.mark.usefixtures("unoptimized"),
    # As in test_checkpoint_damage.py: Orbax drops coroutines of a read that fails.
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SETTINGS = Settings(measures=["trajectory"], num_examples=40, grid_size=3)
CONFIG = Config(
    data=DataConfig("synthetic", synthetic_num_examples=80, synthetic_image_size=8, batch_size=16, eval_batch_size=40),
    model=ModelConfig("cnn_s", num_bn_groups=8, dtype="bfloat16"),
    optim=OptimConfig("sgd", learning_rate=0.3, frozen=("head/*",)),
    mesh=MeshConfig(replica=2, fsdp=2, tensor=2),
    train=TrainConfig(num_steps=8, log_every_steps=8, eval_every_steps=8, ema_decay=0.5),
    checkpoint=CheckpointConfig(every_steps=2, keep_last=4),
)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with batch normalisation, frozen parameters and a moving average, and four checkpoints."""
    folder = tmp_path_factory.mktemp("trajectory") / "run"
    train(CONFIG, folder)
    return folder


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2)], ids=str)
def test_the_axes_are_those_of_a_singular_value_decomposition(shape, set_mesh):
    set_mesh(*shape)
    vectors_TxN = np.random.default_rng(0).standard_normal((5, 64)) * 4.0 ** np.arange(5)[:, None]
    placed = [jax.device_put(v.astype(np.float32), sharding(FLAT)) for v in vectors_TxN]
    places_Tx2, share, axes = trajectory._main_axes(placed)
    mixtures, sizes, rows = np.linalg.svd(vectors_TxN, full_matrices=False)
    signs = np.where(mixtures[-1, :2] < 0, -1, 1)
    np.testing.assert_allclose(places_Tx2, mixtures[:, :2] * sizes[:2] * signs, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(np.stack(axes), rows[:2] * signs[:, None], atol=1e-4)
    np.testing.assert_allclose(share, (sizes[:2] ** 2).sum() / (sizes**2).sum(), rtol=1e-5)


@pytest.mark.parametrize("vectors", [[[3.0, 0], [2, 0], [1, 0]], [[0.0, 0]] * 3], ids=["a line", "a point"])
def test_checkpoints_that_span_no_plane_are_one_line(vectors, set_mesh):
    set_mesh()
    with pytest.raises(ConfigError, match="span no plane: leave trajectory out") as error:
        trajectory._main_axes(list(jnp.array(vectors)))
    assert "\n" not in str(error.value)


def test_ticks_reach_beyond_the_path_and_hold_its_end():
    np.testing.assert_allclose(trajectory._ticks(np.array([1.0, 0.5]), 3), [-0.2, 0.5, 1.2])
    np.testing.assert_allclose(trajectory._ticks(np.array([-1.0, 1.0]), 2), [-1.4, 1.4])


def filters(params):
    """Kernels with a row for each filter, in float64; those of `head` are frozen."""
    leaves = jax.tree.leaves_with_path(jax.device_get(params))
    kernels = [w for path, w in leaves if path[-1].key == "kernel" and path[0].key != "head"]
    return [np.asarray(w, np.float64).reshape(-1, w.shape[-1]).T for w in kernels]


def test_places_are_those_of_the_filters_and_losses_those_of_the_networks(run_dir):
    """By the definition, in float64. At the end of the path the plane has the loss of the last checkpoint."""
    found = measure_run(CONFIG, run_dir, SETTINGS, None, None).trajectory
    with jax.set_mesh(make_mesh(CONFIG.mesh)):
        states = dict(load_each(run_dir, Task.of(CONFIG).abstract_state().network))
    assert found.steps == sorted(states) == [2, 4, 6, 8]
    ends = filters(states[8].evaluated[0])
    norms = np.concatenate([np.linalg.norm(w, axis=1) for w in ends])
    vectors_TxN = np.stack(
        [
            np.concatenate(
                [
                    ((w - end) / np.linalg.norm(end, axis=1, keepdims=True)).ravel()
                    for w, end in zip(filters(states[step].evaluated[0]), ends, strict=True)
                ]
            )
            for step in found.steps
        ]
    ) / np.sqrt(len(norms))
    mixtures, sizes, _ = np.linalg.svd(vectors_TxN, full_matrices=False)
    places = mixtures[:, :2] * sizes[:2] * np.where(mixtures[0, :2] < 0, -1, 1)
    np.testing.assert_allclose(found.places, places, rtol=1e-3, atol=1e-4 * sizes[0])
    np.testing.assert_allclose(found.share, (sizes[:2] ** 2).sum() / (sizes**2).sum(), rtol=1e-4)


def test_a_place_of_the_plane_has_the_loss_of_the_line_to_a_checkpoint(run_dir, tmp_path, monkeypatch):
    """Of two checkpoints and the measured one, all are in the plane: its losses are those of the checkpoints there."""
    copied = shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(copied / "checkpoints" / "4")
    monkeypatch.setattr(trajectory, "_ticks", lambda place_T, num: np.append(place_T, 0.0))
    found = measure_run(CONFIG, copied, replace(SETTINGS, num_examples=80), None, None).trajectory
    assert found.steps == [2, 6, 8]
    np.testing.assert_allclose(found.share, 1, rtol=1e-5)
    np.testing.assert_allclose(found.places[2], 0, atol=1e-6)
    # Newest first. Scales and biases stay those of the measured network, which its own loss tells alone.
    np.testing.assert_allclose(found.plane[0, 0], found.losses[2], rtol=1e-4)
    assert not np.any(np.isclose(found.losses[:2], found.losses[2], rtol=1e-3))
    np.testing.assert_allclose([found.plane[1, 1], found.plane[2, 2]], found.losses[1::-1], rtol=0.2)


def test_an_average_of_checkpoints_is_the_middle_of_its_path(run_dir):
    found = measure_run(CONFIG, run_dir, SETTINGS, None, 4).trajectory
    assert found.steps == [2, 4, 6, 8]
    np.testing.assert_allclose(found.places.sum(axis=0), 0, atol=1e-5)


def test_a_damaged_checkpoint_is_left_out_and_too_few_are_one_line(run_dir, tmp_path, capfd):
    copied = shutil.copytree(run_dir, tmp_path / "run")
    measured = partial(measure_run, CONFIG, copied, SETTINGS, None, None)
    (largest, *_) = sorted((copied / "checkpoints" / "4").rglob("d/*"), key=lambda path: -path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:10])
    assert measured().trajectory.steps == [2, 6, 8]
    assert "the checkpoint of step 4 is damaged (" in capfd.readouterr().err
    shutil.rmtree(copied / "checkpoints" / "2")
    with pytest.raises(ConfigError, match="holds 2 intact checkpoints, but 3 span a plane: leave trajectory out"):
        measured()


def test_a_checkpoint_of_a_network_that_had_diverged_is_left_out(run_dir, monkeypatch, capfd):
    def load(*arguments):
        for step, state in load_each(*arguments):
            params = jax.tree.map(lambda w: w * jnp.nan, state.params) if step == 4 else state.params
            yield step, replace(state, params=params, ema=None)

    monkeypatch.setattr(trajectory, "load_each", load)
    assert measure_run(CONFIG, run_dir, SETTINGS, None, None).trajectory.steps == [2, 6, 8]
    assert "the checkpoint of step 4 has parameters that are not finite: it is left out" in capfd.readouterr().err


def test_checkpoints_that_the_run_deletes_are_left_out_without_a_word(run_dir, tmp_path, capfd):
    copied = shutil.copytree(run_dir, tmp_path / "run")
    with jax.set_mesh(make_mesh(CONFIG.mesh)):
        found = load_each(copied, Task.of(CONFIG).abstract_state().network)
        assert next(found)[0] == 8
        shutil.rmtree(copied / "checkpoints" / "6")
        assert [step for step, _ in found] == [4, 2]
    assert "damaged" not in capfd.readouterr().err


def test_a_trajectory_is_written_as_words_numbers_and_a_picture(tmp_path):
    """Also if a loss overflows. Of many checkpoints seven have a column, with the first and the last one."""
    places = np.stack([np.linspace(1, 0, 20), np.linspace(0.5, 0, 20) ** 2], axis=1)
    losses = np.append(np.inf, np.linspace(2, 1, 19))
    plane = np.array([[1.0, 2, np.inf], [1, 3, 9], [2, 4, 9]])
    ticks = np.array([[-0.2, 0.5, 1.2], [-0.1, 0.1, 0.3]])
    found = Report(
        20, {"sharpness/loss": 1.0}, trajectory=Trajectory([*range(1, 21)], losses, places, 0.9, ticks, plane)
    )
    text = list(report.lines(found, SETTINGS))
    assert text[1].split() == [
        "checkpoints",
        *(f"{word}" for n in (1, 4, 7, 10, 13, 16, 20) for word in ("step", str(n))),
    ]
    assert text[-1].split() == ["share", "of", "both", "90.00%"]
    report.write(tmp_path, "runs/a", found, SETTINGS)
    content = json.loads((tmp_path / "sharpness.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    assert content["trajectory"]["checkpoints"]["loss"][:2] == [None, 2]
    assert content["trajectory"]["plane"]["loss"][0] == [1, 2, None]
    picture = np.asarray(Image.open(tmp_path / "trajectory.png")).astype(int)
    # White dots at both ends of the path, from the right to the left.
    for x, y in ((60 + 440 * 1.2 / 1.4, 500 - 440 * 0.35 / 0.4), (60 + 440 * 0.2 / 1.4, 500 - 440 * 0.1 / 0.4)):
        assert picture[round(y), round(x)].sum() == 3 * 255
    assert len(list(tmp_path.glob("events.*"))) == 1


@pytest.mark.slow
def test_two_processes_measure_the_same_path(run_dir, tmp_path):
    here = measure_run(CONFIG, run_dir, SETTINGS, None, None).trajectory
    options = ["--measure", "trajectory", "--examples", "40", "--grid", "3", "--output", str(tmp_path / "found")]
    run(
        tmp_path,
        "sharpness",
        str(run_dir),
        *options,
        "--mesh.replica",
        "1",
        "--mesh.tensor",
        "1",
        num_processes=2,
        num_devices=2,
    )
    found = json.loads((tmp_path / "found" / "sharpness.json").read_text())["trajectory"]
    assert found["checkpoints"]["steps"] == here.steps
    np.testing.assert_allclose(found["checkpoints"]["places"], here.places, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(found["checkpoints"]["loss"], here.losses, rtol=2e-3)
    np.testing.assert_allclose(found["plane"]["loss"], here.plane, rtol=2e-3)
