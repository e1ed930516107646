"""What an evaluation says about single images and classes: every image once, whatever the devices and the data are."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from test_data_images import Memory

from gnp_scale.config import Config, ConfigError, DataConfig, ModelConfig, TrainConfig
from gnp_scale.config.run import Loss
from gnp_scale.data.augment import normalise
from gnp_scale.data.dataset import UNREADABLE, Dataset, Split
from gnp_scale.data.images import ImageSplit
from gnp_scale.loop import train
from gnp_scale.monitoring import confusion
from gnp_scale.monitoring.confusion import NO_GUESS, Confusion, Guesses
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.monitoring.pictures import make_folder, matrix_picture, worst_picture, write_pictures
from gnp_scale.training import evaluate
from gnp_scale.training.evaluate import make_evaluate, trace_eval_step
from gnp_scale.training.setup import Task

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_EXAMPLES, NUM_CLASSES = 37, 37
DAMAGED = {3: b"", 20: None}
SHAPES = [(1, 8, 1), (2, 2, 2), (1, 1, 1)]


def make_task(loss: Loss = "softmax") -> Task:
    """37 images in batches of 16, so the last one is padded; two cannot be used, and each is its own class."""
    data = DataConfig(eval_batch_size=16, batch_size=16, image_size=8, max_damaged=0.2)
    source = Memory(NUM_EXAMPLES, DAMAGED)
    split = ImageSplit("evaluation", source, np.arange(NUM_EXAMPLES), data)
    dataset = Dataset("memory", split, split, NUM_CLASSES, (0.5,) * 3, (0.25,) * 3)
    # The set that the configuration names has as many classes and images of the same shape.
    config = Config(
        data=DataConfig(
            name="synthetic",
            synthetic_num_classes=NUM_CLASSES,
            synthetic_image_size=8,
            eval_batch_size=16,
            batch_size=16,
        ),
        model=ModelConfig("vit_mu", patch_size=4, depth=1),
        train=TrainConfig(loss=loss),
    )
    return dataclasses.replace(Task.of(config), dataset=dataset)


def filled(state, value_of):
    """`state` with other parameters than the initial ones, with which all logits are equal."""
    params = jax.tree.map(lambda w: jax.device_put(value_of(jax.device_get(w)), w.sharding), state.params)
    return dataclasses.replace(state, params=params)


def numpy_values(loss, logits, label):
    """Probabilities of the classes, and the loss, of each image; the label of an image that cannot be used is -1."""
    if loss == "softmax":
        share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return share, -np.log(share[np.arange(len(label)), label])
    log_odds = np.where(np.arange(NUM_CLASSES) == label[:, None], logits, -logits)
    return 1 / (1 + np.exp(-logits)), np.logaddexp(0, -log_odds).sum(axis=1)


@pytest.mark.parametrize(
    ("shape", "loss"),
    [
        *(pytest.param(shape, "softmax", marks=() if shape == (1, 1, 1) else pytest.mark.slow) for shape in SHAPES),
        ((2, 2, 2), "sigmoid"),
    ],
    ids=str,
)
def test_the_guess_for_each_image_is_that_of_numpy(shape, loss, set_mesh):
    """On any mesh, with padding and with images that cannot be used; a tie is won by the first class."""
    set_mesh(*shape)
    task = make_task(loss)
    program = trace_eval_step(task).compile()
    evaluation_of = make_evaluate(task, lambda: program)
    random = np.random.default_rng(0)
    state = filled(task.init_state(), lambda w: w if w.ndim < 2 else random.normal(size=w.shape).astype(w.dtype))
    scores, guesses = evaluation_of(state.network)
    guessed = guesses()

    rows = task.dataset.test.read(np.minimum(np.arange(40), NUM_EXAMPLES - 1), None)
    network = task.model.network(state.params, state.batch_stats)
    with jax.numpy_rank_promotion("allow"):
        of_images = jax.jit(lambda image: network(normalise(image, task.dataset), train=False))
        logits = jax.device_get(of_images(rows["image"]))
    label, logits = rows["label"][:NUM_EXAMPLES], logits[:NUM_EXAMPLES].astype(np.float64)
    share, losses = numpy_values(loss, logits, label)
    np.testing.assert_array_equal(guessed.label, label)
    assert np.flatnonzero(label == UNREADABLE).tolist() == sorted(DAMAGED)
    used = label != UNREADABLE
    np.testing.assert_array_equal(guessed.guess[used], np.argmax(logits, axis=1)[used])
    np.testing.assert_allclose(guessed.confidence[used], share.max(axis=1)[used], rtol=1e-4)
    np.testing.assert_allclose(guessed.loss[used], losses[used], rtol=1e-4)
    assert len(set(guessed.guess[used].tolist())) > 3, "a network that always guesses the same shows little"

    expected = np.zeros((NUM_CLASSES, NUM_CLASSES), int)
    np.add.at(expected, (label[used], np.argmax(logits, axis=1)[used]), 1)
    np.testing.assert_array_equal(guessed.counts(), expected)
    assert guessed.counts().sum() == NUM_EXAMPLES - len(DAMAGED)
    assert scores["eval/top1"] == pytest.approx(np.trace(expected) / used.sum())
    assert scores["eval/loss"] == pytest.approx(guessed.loss[used].mean(), rel=1e-5)

    tied = evaluation_of(filled(state.network, np.zeros_like)).guesses()
    assert set(tied.guess[used].tolist()) == {0}
    no_number = evaluation_of(filled(state.network, lambda w: np.full_like(w, np.nan)))
    assert no_number.scores["eval/top1"] == np.trace(no_number.guesses().counts()) == 0
    assert set(no_number.guesses().guess[used].tolist()) == {NO_GUESS}


@pytest.mark.slow
def test_the_scores_are_bitwise_those_of_a_program_without_guesses(set_mesh, monkeypatch, optimized):
    """With its optimizations, XLA takes sums in another order if anything else uses the same values."""
    set_mesh(1, 4, 2)
    data = DataConfig(batch_size=64, eval_batch_size=120)
    task = Task.of(Config(data=data, model=ModelConfig("vit_mu", patch_size=2, depth=1)))
    state = task.init_state()

    def scores() -> dict[str, str]:
        program = trace_eval_step(task).compile()
        return {name: score.hex() for name, score in make_evaluate(task, lambda: program)(state.network).scores.items()}

    both = scores()
    monkeypatch.setattr(evaluate, "_guessed", lambda *_: {})
    assert both == scores()


def some_guesses(num_classes: int, num_images: int = 500, num_wrong: int | None = None) -> Guesses:
    """Random ones; some images do not count, some have no guess."""
    random = np.random.default_rng(1)
    label = random.integers(-1, num_classes, num_images).astype(np.int32)
    guess = np.where(random.random(num_images) < 0.6, label, random.integers(-1, num_classes, num_images))
    loss, confidence = random.random((2, num_images), np.float32)
    return Guesses(label, guess.astype(np.int32), loss, confidence, num_classes)


def test_the_counts_of_several_classes_together_are_sums():
    guesses = some_guesses(7)
    counts = guesses.counts()
    padded = np.pad(counts, (0, 2))
    np.testing.assert_array_equal(guesses.counts(3), padded.reshape(3, 3, 3, 3).sum(axis=(1, 3)))
    right, of_class = guesses.per_class()
    np.testing.assert_array_equal(right, np.diag(counts))
    np.testing.assert_array_equal(of_class, [(guesses.label == label).sum() for label in range(7)])


def test_confusions_are_the_largest_counts_beside_the_diagonal():
    guesses = some_guesses(5)
    counts, (_, of_class) = guesses.counts(), guesses.per_class()
    off = counts * (1 - np.eye(5, dtype=int))
    found = guesses.confusions(100)
    assert [(each.label, each.guess) for each in found] == [
        divmod(pair, 5) for pair in sorted(np.flatnonzero(off).tolist(), key=lambda pair: (-off.ravel()[pair], pair))
    ]
    assert all(each.count == off[each.label, each.guess] for each in found)
    assert all(each.num_images == of_class[each.label] for each in found)
    assert guesses.confusions(3) == found[:3]


def test_ties_have_one_order():
    label = np.array([2, 0, 1, 0, 2, 1, -1], np.int32)
    guess = np.array([0, 2, 1, 1, 0, NO_GUESS, 1], np.int32)
    loss = np.array([1, 2, 9, 2, np.nan, 9, 9], np.float32)
    guesses = Guesses(label, guess, loss, loss, 3)
    assert guesses.confusions(9) == [Confusion(2, 0, 2, 2), Confusion(0, 1, 1, 2), Confusion(0, 2, 1, 2)]
    assert guesses.worst(9).tolist() == [4, 1, 3, 0], "right, missing and uncounted guesses are not there"
    assert guesses.worst(2).tolist() == [4, 1]
    assert confusion.line(guesses, str, 1) == "most frequent confusions: 2 -> 0 (2 of 2 images)"


AWKWARD = ("a|b<i>c</i>", "line\nbreak", "\udce4*\N{SNOWMAN}*", "", "_" * 200)


def awkward_set(test) -> Dataset:
    return Dataset("awkward", test, test, 5, (0.5,), (0.25,), class_names=AWKWARD)


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")
def test_any_name_of_a_class_is_shown_as_it_is():
    from tensorboard.plugin_util import markdown_to_safe_html

    guesses, dataset = some_guesses(5), awkward_set(None)
    assert [dataset.class_name(label) for label in range(4)] == ["a|b<i>c</i>", "line break", "?*\N{SNOWMAN}*", "3"]
    page = markdown_to_safe_html(confusion.tables(guesses, dataset.class_name))
    for name in ("a|b&lt;i&gt;c&lt;/i&gt;", "line break", "?*\N{SNOWMAN}*", "_" * 200):
        assert f"<td>{name}</td>" in page
    assert page.count("<table>") == 2
    matrix_picture(guesses, dataset.class_name)


@pytest.mark.parametrize("num_classes", [2, 10, 41, 100, 101, 1000, 1001, 21841])
def test_the_picture_of_a_matrix_is_legible_and_bounded(num_classes: int):
    picture = matrix_picture(some_guesses(num_classes), lambda label: f"a class with a long name, {label}")
    assert max(picture.shape) <= 1000 + 200
    assert min(picture.shape[:2]) >= 100
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    assert len(file.getvalue()) < 1 << 19


def test_a_darker_cell_is_a_larger_share_of_the_row():
    label = np.repeat(np.arange(3, dtype=np.int32), [100, 10, 10])
    guess = label.copy()
    guess[:20], guess[100:109] = 1, 2
    picture = matrix_picture(Guesses(label, guess, label.astype(float), label.astype(float), 3), str)
    # In the corner of a cell there is no number. The cells are at the right end, above a line of text.
    edge = picture.shape[0] - 16 - 3 * 40
    cell_3x3 = picture[edge + 2 : edge + 120 : 40, edge + 2 : edge + 120 : 40].astype(int).sum(axis=-1)
    shares = np.array([[0.8, 0.2, 0], [0, 0.1, 0.9], [0, 0, 1]])
    order = np.argsort(shares, axis=None, kind="stable")
    darkness = 3 * 255 - cell_3x3.ravel()[order]
    assert (np.diff(darkness)[np.diff(shares.ravel()[order]) > 0] > 0).all()
    assert (darkness[:4] == 0).all()


class Failing(Split):
    """A split that cannot be read now."""

    error: Exception = OSError(5, "Input/output error")

    def read(self, chosen_B, draw_BxD):
        raise self.error


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), ConfigError("too many images")], ids=str)
def test_a_data_set_that_cannot_be_read_is_named_and_no_error(error: Exception, monkeypatch, capfd):
    monkeypatch.setattr(Failing, "error", error)
    assert worst_picture(some_guesses(5), awkward_set(Failing(np.zeros(0), np.zeros(0)))) is None
    (line,) = capfd.readouterr().err.splitlines()
    assert "the images that are guessed worst are not shown: " in line


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (128, 3), (224, 3)])
def test_the_worst_images_stand_in_a_grid(side: int, channels: int):
    guesses = some_guesses(5)
    split = Split(np.full((500, side, side, channels), 60, np.uint8), guesses.label)
    picture = worst_picture(guesses, awkward_set(split))
    assert picture is not None
    assert picture.shape == (4 * (128 + 2 * 24 + 4), 4 * (128 + 4), 3)
    assert (picture[30, 30] == 60).all()
    # An image that cannot be read again is not there; the others move up.
    chosen = guesses.worst(16)
    lost = split.label.copy()
    lost[chosen[1:]] = UNREADABLE
    single = worst_picture(guesses, awkward_set(Split(split.image, lost)))
    assert single is not None
    assert single.shape == (128 + 2 * 24 + 4, 128 + 4, 3)
    lost[:] = UNREADABLE
    assert worst_picture(guesses, awkward_set(Split(split.image, lost))) is None


def test_without_a_wrong_guess_there_is_one_picture(tmp_path):
    """Also where an earlier evaluation has left two."""
    (tmp_path / "confusion.png").touch()
    (tmp_path / "worst.png").touch()
    label = np.arange(5, dtype=np.int32)
    guesses = Guesses(label, label, np.zeros(5, np.float32), np.ones(5, np.float32), 5)
    assert confusion.line(guesses, str, 5) == "no class is taken for another"
    write_pictures(tmp_path, guesses, awkward_set(Failing(np.zeros(0), np.zeros(0))))
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]


def test_a_picture_of_somebody_else_is_not_removed(tmp_path):
    (tmp_path / "worst.png").touch()
    label = np.arange(5, dtype=np.int32)
    guesses = Guesses(label, label, np.zeros(5, np.float32), np.ones(5, np.float32), 5)
    write_pictures(tmp_path, guesses, awkward_set(Failing(np.zeros(0), np.zeros(0))))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["confusion.png", "worst.png"]


def test_a_folder_that_refuses_pictures_is_named(tmp_path, capfd):
    label = np.arange(5, dtype=np.int32)
    guesses = Guesses(label, label, np.zeros(5, np.float32), np.ones(5, np.float32), 5)
    write_pictures(tmp_path / "gone", guesses, awkward_set(None))
    (line,) = capfd.readouterr().err.splitlines()
    assert "confusion.png cannot be written (No such file or directory)" in line
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file cannot be made"):
        make_folder(tmp_path / "file")


@pytest.mark.parametrize(("num_steps", "every"), [(1, 100), (100, 100), (1000, 100), (1001, 100), (95, 1), (7, 2)])
def test_at_most_ten_evaluations_are_shown_and_always_the_last(num_steps: int, every: int):
    config = TrainConfig(num_steps=num_steps, eval_every_steps=every)
    evaluated = [step for step in range(1, num_steps + 1) if config.evaluates_after(step)]
    shown = [step for step in evaluated if config.shows_guesses_after(step)]
    assert len(shown) == min(10, len(evaluated))
    assert shown[-1] == num_steps
    assert np.ptp(np.diff([0, *(1 + evaluated.index(step) for step in shown)])) <= 1


def shown_values(run_dir) -> dict[str, dict[int, list]]:
    """What event files have, by tag and step: the strings of texts and pictures, or the rows of a histogram."""
    found: dict[str, dict[int, list]] = {}
    for path in sorted(run_dir.glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                rows = found.setdefault(value.tag, {})
                assert event.step not in rows, f"{value.tag} twice at step {event.step}"
                rows[event.step] = list(value.tensor.string_val) or [value.tensor]
    return found


@pytest.mark.slow
def test_a_run_shows_its_evaluations_in_tensorboard(tmp_path):
    """What the event file says is what `metrics.jsonl` says."""
    config = Config(
        data=DataConfig(batch_size=64, eval_batch_size=120),
        model=ModelConfig("vit_mu", patch_size=2, depth=1),
        train=TrainConfig(num_steps=13, eval_every_steps=1, log_every_steps=5),
    )
    assert train(config, tmp_path) == 0
    scores = {row["step"]: row["eval/top1"] for row in read_metrics(tmp_path) if "eval/top1" in row}
    values = shown_values(tmp_path)
    steps = [step for step in scores if config.train.shows_guesses_after(step)]
    assert len(steps) == 10
    for tag in ("eval/confusion_matrix", "eval/worst_images", "eval/class_accuracy", "eval/confusions/text_summary"):
        assert list(values[tag]) == steps
    for step in steps:
        (text,) = values["eval/confusions/text_summary"][step]
        assert text.decode().startswith(f"The first guess is right for {round(scores[step] * 360)} of 360 images.")
        for tag in ("eval/confusion_matrix", "eval/worst_images"):
            *_, png = values[tag][step]
            assert Image.open(io.BytesIO(png)).width > 400
