"""Batches of encoded images: a function of seed and step, whatever reads them, and whatever cannot be read."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from image_sets import jpeg, photograph, png

from gnp_scale.config import Config, ConfigError, DataConfig, ModelConfig
from gnp_scale.data.augment import normalise
from gnp_scale.data.containers.record import Record
from gnp_scale.data.crops import NUM_DRAWS
from gnp_scale.data.dataset import UNREADABLE
from gnp_scale.data.images import ImageSplit, load_images
from gnp_scale.data.noisy_labels import NoisyLabels
from gnp_scale.data.parts import held_out
from gnp_scale.data.pipeline import batch_indices, eval_batches, train_batches
from gnp_scale.data.sources import load
from gnp_scale.training.evaluate import make_evaluate, trace_eval_step
from gnp_scale.training.setup import Task

NUM_EXAMPLES, BATCH_SIZE = 37, 16


class Memory:
    """A source of JPEGs in memory; the label of each is its number."""

    def __init__(self, num_examples: int = NUM_EXAMPLES, damaged: dict[int, bytes | None] | None = None) -> None:
        self.damaged = damaged or {}
        self.data = [jpeg(photograph(20 + number, 30, seed=number)) for number in range(num_examples)]
        self.read_ids: list[int] = []

    def __len__(self) -> int:
        return len(self.data)

    def read(self, ids) -> list[Record]:
        self.read_ids += [int(number) for number in ids]
        return [self.record(int(number)) for number in ids]

    def record(self, number: int) -> Record:
        data = self.damaged.get(number, self.data[number])
        problem = "it is gone" if data is None else ""
        return Record(data or b"", number, f"image-{number}", problem)

    def labels(self) -> np.ndarray:
        return np.arange(len(self))


def config(**options) -> DataConfig:
    defaults = {"batch_size": BATCH_SIZE, "eval_batch_size": BATCH_SIZE, "image_size": 8, "max_damaged": 0.2}
    return DataConfig(**defaults | options)


def split(source: Memory, **options) -> ImageSplit:
    return ImageSplit("training", source, np.arange(len(source)), config(**options))


class Set:
    """What the pipeline needs of a data set."""

    def __init__(self, source: Memory, **options) -> None:
        self.train = self.test = split(source, **options)


def batches(source: Memory, start: int, num_steps: int, seed: int = 3, **options) -> list[dict[str, np.ndarray]]:
    stream = train_batches(Set(source, **options), config(**options), seed, start, num_steps)
    return [jax.device_get(batch) for batch in stream]


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_batch_depends_on_seed_and_step_alone(shape, num_threads: int, set_mesh):
    set_mesh(1, 4, 1)
    expected = batches(Memory(), 0, 5)
    set_mesh(*shape)
    for start in (0, 3):
        for batch, due in zip(
            batches(Memory(), start, 5 - start, num_threads=num_threads), expected[start:], strict=True
        ):
            np.testing.assert_array_equal(batch["label"], due["label"])
            np.testing.assert_array_equal(batch["image"], due["image"])


@pytest.mark.parametrize("start", [0, 1_000_000])
def test_before_the_first_batch_only_its_records_are_read(start: int, set_mesh):
    """Neither those of earlier steps nor, until it is there, of later ones."""
    set_mesh()
    source = Memory()
    stream = train_batches(Set(source), config(num_threads=3), 3, start, 100)
    next(stream)
    stream.close()
    expected = batch_indices(3, NUM_EXAMPLES, BATCH_SIZE, start)
    assert sorted(source.read_ids[:BATCH_SIZE]) == sorted(expected.tolist())


def test_cpus_use_the_images_without_a_copy():
    image_BxHxWx3 = split(Memory()).read(np.arange(BATCH_SIZE), None)["image"]
    (shard,) = jax.device_put(image_BxHxWx3).addressable_shards
    assert shard.data.unsafe_buffer_pointer() == image_BxHxWx3.ctypes.data


def test_an_epoch_reads_each_example_once_and_crops_it_anew(set_mesh):
    set_mesh()
    source = Memory(NUM_EXAMPLES - 5)
    stream = batches(source, 0, 4)
    labels = np.concatenate([batch["label"] for batch in stream]).reshape(2, 32)
    np.testing.assert_array_equal(np.sort(labels, axis=1), [np.arange(32)] * 2)
    assert sorted(source.read_ids) == sorted([*range(32)] * 2)
    images = np.concatenate([batch["image"] for batch in stream])
    first, second = (images[np.flatnonzero(labels.ravel() == 7)[place]] for place in (0, 1))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("data", [None, b"", b"text", png(3)[:40]], ids=["gone", "empty", "text", "cut"])
def test_the_next_example_takes_the_place_of_an_unusable_one(data: bytes | None, set_mesh, capfd):
    set_mesh()
    damaged = {8: data, 9: data, 36: data}
    replaced = {8: 10, 9: 10, 36: 0}
    whole, other = batches(Memory(), 0, 5), batches(Memory(damaged=damaged), 0, 5)
    for before, after in zip(whole, other, strict=True):
        np.testing.assert_array_equal(
            after["label"], [replaced.get(label, label) for label in before["label"].tolist()]
        )
        same = ~np.isin(before["label"], list(damaged))
        np.testing.assert_array_equal(after["image"][same], before["image"][same])
    told = capfd.readouterr().err.splitlines()
    assert len([line for line in told if "training image 8 cannot be used: image-8: " in line]) == 1
    assert len(told) == 3


def test_the_replacement_depends_on_seed_and_step_alone(set_mesh):
    set_mesh()
    damaged = {8: None, 9: None}
    expected = batches(Memory(damaged=damaged), 0, 5)
    for start in (1, 4):
        for batch, due in zip(batches(Memory(damaged=damaged), start, 5 - start), expected[start:], strict=True):
            np.testing.assert_array_equal(batch["image"], due["image"])


def test_too_many_unusable_images_end_the_run_with_one_line(set_mesh):
    set_mesh()
    damaged = dict.fromkeys(range(8))
    with pytest.raises(ConfigError) as error:
        batches(Memory(damaged=damaged), 0, 20)
    assert "8 of 37 training images cannot be used, more than data.max_damaged 0.2; the last is image-" in str(
        error.value
    )
    assert "\n" not in str(error.value)
    batches(Memory(damaged=damaged), 0, 20, max_damaged=0.3)


def test_a_set_without_a_usable_image_ends(set_mesh):
    set_mesh()
    with pytest.raises(ConfigError, match="cannot be used"):
        batches(Memory(damaged=dict.fromkeys(range(NUM_EXAMPLES))), 0, 1, max_damaged=0.99)


@pytest.mark.parametrize("shape", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_evaluation_counts_each_usable_image_once(shape, set_mesh):
    set_mesh(*shape)
    source = Memory(damaged={5: None, 20: b"text"})
    seen = [jax.device_get(batch) for batch in eval_batches(split(source), config())]
    labels = np.concatenate([batch["label"][batch["mask"] == 1] for batch in seen])
    np.testing.assert_array_equal(labels, [number for number in range(NUM_EXAMPLES) if number not in (5, 20)])
    assert min(batch["label"].min() for batch in seen) == 0


def test_evaluation_crops_the_centre(set_mesh):
    source = Memory()
    rows = split(source).read(np.array([4, 2]), None)
    assert rows["label"].tolist() == [4, 2]
    again = split(source).read(np.array([2]), None)
    np.testing.assert_array_equal(rows["image"][1], again["image"][0])
    assert split(Memory(damaged={2: None})).read(np.array([2]), None)["label"].tolist() == [UNREADABLE]


@pytest.mark.parametrize("num_examples", [1, 10, 999, 1_281_167])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5])
def test_the_part_that_is_held_out_is_evenly_spaced(num_examples: int, share: float):
    train, held = held_out(num_examples, share)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(num_examples))
    assert len(held) == int(num_examples * share)
    assert np.ptp(np.diff(held)) <= 1 if len(held) > 2 else True


def write_set(root: Path, splits: dict[str, int]) -> None:
    for name, num_images in splits.items():
        for number in range(num_images):
            folder = root / "set" / name / f"class-{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:02d}.jpg").write_bytes(jpeg(photograph(12, 14, seed=number)))


@pytest.fixture
def root(cache: Path, tmp_path: Path) -> Path:
    """Where the sets are, beside an empty cache."""
    return tmp_path


def test_the_evaluated_split_is_the_named_one_or_the_first_that_there_is(root: Path):
    write_set(root, {"train": 8, "val": 4, "test": 6})

    def sizes(**options) -> tuple[int, int]:
        dataset = load(DataConfig(name="set", root=str(root), image_size=8, **options))
        return len(dataset.train), len(dataset.test)

    assert sizes() == (8, 4)
    assert sizes(eval_split="test") == (8, 6)
    assert sizes(holdout=0.25) == (6, 2)
    assert sizes(holdout=0.25, eval_split="test") == (6, 6)
    with pytest.raises(ConfigError, match=r"data\.eval_split is 'none': the data set has test, train, validation"):
        sizes(eval_split="none")
    with pytest.raises(ConfigError, match=r"data\.holdout 0\.01 of 8 examples evaluates on none: change it"):
        sizes(holdout=0.01)
    with pytest.raises(ConfigError, match=r"data\.holdout is 0"):
        sizes(eval_split="holdout")


def test_held_out_examples_are_not_trained_on(root: Path):
    write_set(root, {"train": 8})
    dataset = load_images(DataConfig(name="set", root=str(root), image_size=8, holdout=0.25))
    assert not set(dataset.train.ids) & set(dataset.test.ids)
    assert dataset.class_names == ("class-0", "class-1")
    with pytest.raises(ConfigError, match=r"hold a part out of training with data\.holdout"):
        load_images(DataConfig(name="set", root=str(root), image_size=8))


def pictures(split: ImageSplit) -> dict[bytes, int]:
    """The label of each image, by its bytes."""
    rows = split.read(np.arange(len(split)), None)
    return {image.tobytes(): int(label) for image, label in zip(rows["image"], rows["label"], strict=True)}


def test_examples_are_drawn_and_labels_replaced_before_a_part_is_held_out(root: Path):
    """As in small sets: noise draws no other examples, and the other splits have neither."""
    write_set(root, {"train": 40, "test": 6})

    def parts(**options) -> tuple[dict[bytes, int], dict[bytes, int]]:
        dataset = load(DataConfig(name="set", root=str(root), image_size=8, **options))
        return pictures(dataset.train), pictures(dataset.test)

    whole, test = parts()
    drawn = {"num_examples": 20, "holdout": 0.25}
    (clean, clean_held), (noisy, noisy_held) = parts(**drawn), parts(**drawn, label_noise=0.4)
    assert (len(noisy), len(noisy_held), len(noisy | noisy_held)) == (15, 5, 20)
    assert (clean.keys(), clean_held.keys()) == (noisy.keys(), noisy_held.keys())
    assert (clean | clean_held).items() <= whole.items()
    wrong = [image for image, label in (noisy | noisy_held).items() if label != whole[image]]
    assert len(wrong) == 8
    assert parts(**drawn, label_noise=0.4, draw_seed=1)[0].keys() != noisy.keys()
    assert parts(**drawn, label_noise=0.4, eval_split="train")[1] == noisy, "with the labels that are trained on"
    assert parts(**drawn, label_noise=0.4, eval_split="test")[1] == test


def test_the_record_after_a_damaged_one_brings_its_own_noise():
    """And the labels of records that cannot be used stay -1."""
    source = Memory(4, damaged={1: None})
    noisy = NoisyLabels(source, np.array([0, 5, 2, 3]), 6)
    rows = ImageSplit("training", noisy, np.arange(4), config(max_damaged=0.5)).read(
        np.arange(4), np.full((4, NUM_DRAWS), 0.5)
    )
    assert rows["label"].tolist() == [0, 4, 4, 0]
    source.labels = lambda: np.array([0, -1, 2, 3])
    assert noisy.labels().tolist() == [0, -1, 4, 0]


def test_a_data_set_that_is_not_there_is_named(root: Path):
    with pytest.raises(ConfigError) as error:
        load(DataConfig(name="imagenot", root=str(root)))
    expected = f"there is no data set imagenot: give the name of a folder in data.root ({root}), or one of digits, "
    assert str(error.value).startswith(expected)


ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 8, 1), pytest.param((1, 1, 1), marks=pytest.mark.long)], ids=str)
def test_an_answer_among_several_counts_where_there_is_any(shape, root: Path, set_mesh):
    """The accuracy of ReaL, against its definition in NumPy."""
    set_mesh(*shape)
    write_set(root, {"train": 8, "val": 6})
    answers = [[0, 1], [1, 1], [], [0], [1], [1, 0]]
    (root / "real.json").write_text(json.dumps({f"{number:02d}.jpg": row for number, row in enumerate(answers)}))
    data = config(name="set", root=str(root), image_size=8, eval_labels=str(root / "real.json"))
    task = Task.of(Config(data=data, model=ModelConfig("vit_mu", patch_size=4)))
    state = task.init_state()
    scores = make_evaluate(task, lambda: trace_eval_step(task).compile())(state.network).scores
    # As many as the devices can share.
    rows = task.dataset.test.read(np.minimum(np.arange(8), 5), None)
    with jax.numpy_rank_promotion("allow"):
        image = normalise(jax.numpy.asarray(rows["image"]), task.dataset)
        logits = jax.device_get(task.model.network(state.params, state.batch_stats)(image, train=False))
    guess = np.argmax(logits, axis=1)[:6]
    # The images are those of one class after the other.
    order = [0, 2, 4, 1, 3, 5]
    right = [guess[place] in answers[number] for place, number in enumerate(order) if answers[number]]
    assert scores["eval/real"] == pytest.approx(np.mean(right))
    assert scores["eval/top1"] == pytest.approx(np.mean(guess == rows["label"][:6]))


def test_the_file_of_other_labels_may_be_in_the_home_folder(root: Path, monkeypatch):
    """Where no shell expands its name: `--data.eval-labels=~/real.json`, or a recipe."""
    write_set(root, {"train": 4, "val": 2})
    (root / "real.json").write_text("[[0], [1]]")
    monkeypatch.setenv("HOME", str(root))
    assert load(config(name="set", root="~", image_size=8, eval_labels="~/real.json")).num_answers == 1


CRASH = """
import sys, jax, numpy as np
jax.config.update("jax_platforms", "cpu")
from gnp_scale.config import MeshConfig
from gnp_scale.data.label_files import read_label_file
from gnp_scale.data.pipeline import train_batches
from gnp_scale.mesh import make_mesh
from test_data_images import Memory, Set, config

options = {"batch_size": 512, "image_size": 64, "num_threads": 4}
with jax.set_mesh(make_mesh(MeshConfig())):
    for number, batch in enumerate(train_batches(Set(Memory(), **options), config(**options), 0, 0, 1000)):
        print("batch", flush=True)
        if number == 3:
            {ending}
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["raise RuntimeError", "sys.exit(7)", "batch = None; continue"])
def test_a_process_ends_soon_while_threads_read(ending: str):
    """After an error, an exit, or Ctrl-C: no thread keeps the process alive."""
    command = [sys.executable, "-c", CRASH.replace("{ending}", ending)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT, text=True)
    assert process.stdout is not None
    for _ in range(4):
        assert process.stdout.readline() == "batch\n"
    if "continue" in ending:
        process.send_signal(signal.SIGINT)
    start = time.monotonic()
    process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode in (1, 7, -signal.SIGINT)


def test_a_closed_stream_leaves_no_reader(set_mesh):
    set_mesh()
    stream = train_batches(Set(Memory()), config(), 0, 0, 1000)
    next(stream)
    stream.close()
    num_threads = threading.active_count()
    source = Memory()
    stream = train_batches(Set(source), config(), 0, 0, 1000)
    next(stream)
    stream.close()
    time.sleep(0.2)
    num_read = len(source.read_ids)
    time.sleep(0.2)
    assert len(source.read_ids) == num_read
    assert threading.active_count() <= num_threads + 2
