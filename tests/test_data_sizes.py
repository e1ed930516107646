"""A run has the same number of images and classes in all processes and at all starts, or it ends with one line."""

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest
from image_sets import jpeg
from launcher import SMALL, Job

from gnp_scale.chaos.local_processes import free_port
from gnp_scale.config import ConfigError
from gnp_scale.data.dataset import UNREADABLE, Dataset, Split
from gnp_scale.run import data_sizes as module
from gnp_scale.run.data_sizes import check_data_agree, keep_sizes
from gnp_scale.run.layout import DATA_FILE

SIZES = {"training images": 2640, "evaluated images": 296, "classes": 81}
NAMES = ("apple", "banana", "cherry")
IMAGES = {"training images": [1, 2, 3], "evaluated images": [4, 5]}


def test_classes_of_other_names_are_refused(tmp_path):
    """As after a folder of a class was renamed: the labels of all later ones change, and no number does."""
    keep_sizes(tmp_path, SIZES, ("apple", "banana", "cherry"))
    keep_sizes(tmp_path, SIZES, ("apple", "banana", "cherry"))
    expected = r"trained with label 1 for the class 'banana', and now it is that of 'cherry': restore the data set"
    with pytest.raises(ConfigError, match=expected):
        keep_sizes(tmp_path, SIZES, ("apple", "cherry", "zebra"))


def test_a_folder_of_a_version_that_noted_no_names_goes_on(tmp_path):
    (tmp_path / DATA_FILE).write_text(json.dumps(SIZES))
    keep_sizes(tmp_path, SIZES, ("apple", "banana"))
    assert json.loads((tmp_path / DATA_FILE).read_text()) == SIZES


@pytest.mark.parametrize("content", ["[1]", json.dumps(SIZES | {"class names": 5}), "7", "[" * 200_000])
def test_a_damaged_file_is_one_line(content, tmp_path):
    (tmp_path / "data.json").write_text(content)
    with pytest.raises(ConfigError, match=r"data\.json cannot be used"):
        keep_sizes(tmp_path, SIZES, ("apple",))


def test_the_first_start_notes_the_sizes_and_later_ones_compare(tmp_path):
    keep_sizes(tmp_path, SIZES)
    written = (tmp_path / DATA_FILE).stat()
    keep_sizes(tmp_path, SIZES)
    assert (tmp_path / DATA_FILE).stat().st_mtime_ns == written.st_mtime_ns
    with pytest.raises(ConfigError) as error:
        keep_sizes(tmp_path, SIZES | {"training images": 2641, "classes": 82})
    assert str(error.value) == (
        f"{tmp_path} was trained on a data set with 2640 training images and 81 classes, and now it has 2641 training "
        "images and 82 classes, so each step would have other examples: restore the data set, or choose another "
        "--run-dir"
    )
    assert json.loads((tmp_path / DATA_FILE).read_text()) == SIZES


def test_a_damaged_note_is_named(tmp_path):
    (tmp_path / DATA_FILE).write_text("{")
    with pytest.raises(
        ConfigError, match=rf"{DATA_FILE} cannot be used .*: make it readable and writable, or remove it"
    ):
        keep_sizes(tmp_path, SIZES)


def check_copies(monkeypatch, others, rank=0):
    """What process `rank` raises if process 0 has the usual copy, and processes 1 and up have `others`."""
    copies = [(SIZES, NAMES, IMAGES), *others]

    def all_gather(mine):
        if not rounds:
            rounds.append([(sizes, repr(names), images, f"node{n}") for n, (sizes, names, images) in enumerate(copies)])
        else:
            # Only two processes send their names.
            assert list(mine) in (list(copies[rank][1]), [])
            rounds.append([list(names) for _, names, _ in copies])
        return rounds[-1]

    rounds = []
    monkeypatch.setattr(module, "coordination", lambda: (object(), rank, len(copies)))
    monkeypatch.setattr(module, "all_gather", all_gather)
    sizes, names, images = copies[rank]
    check_data_agree(sizes, names, lambda: images)


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (
            (SIZES | {"training images": 2600}, NAMES, IMAGES),
            "has 2600 training images on node2, but process 0 has 2640 training images on node0",
        ),
        (
            (SIZES, ("banana", "cherry", "zucchini"), IMAGES),
            "has 'banana' as class 0 on node2, but process 0 has 'apple' on node0",
        ),
        (
            (SIZES, ("banana", "cherry", "zucchini"), IMAGES | {"training images": [7, 8, 9]}),
            "has 'banana' as class 0 on node2, but process 0 has 'apple' on node0",
        ),
        ((SIZES, ("apple",), IMAGES), "has '' as class 1 on node2, but process 0 has 'banana' on node0"),
        (
            (SIZES, NAMES, IMAGES | {"evaluated images": [4, 6]}),
            "has some evaluated images on node2, but process 0 has others under the same numbers on node0",
        ),
    ],
    ids=["sizes", "names", "names and so images", "fewer names", "images"],
)
def test_processes_with_different_copies_end_together(other, expected, rank, monkeypatch):
    with pytest.raises(ConfigError) as error:
        check_copies(monkeypatch, [(SIZES, NAMES, IMAGES), other], rank)
    assert str(error.value) == f"process 2 {expected}: give all the same data set"


def test_an_image_that_one_copy_cannot_read_is_not_compared(monkeypatch):
    """Training replaces it, and evaluation leaves it out, as if it were damaged everywhere."""
    damaged = IMAGES | {"training images": [1, None, 3]}
    check_copies(monkeypatch, [(SIZES, NAMES, damaged)])


def test_one_process_agrees_with_itself_and_reads_nothing():
    check_data_agree(SIZES, NAMES, lambda: pytest.fail("there is nobody to compare with"))


def test_fingerprints_tell_copies_apart():
    image = np.random.default_rng(0).integers(0, 256, (20, 2, 2, 1), np.uint8)
    label = np.arange(20, dtype=np.int32) % 3

    def copy(**changes):
        train = replace(Split(image, label), **changes)
        return Dataset("x", train, Split(image, label), 3, (0.5,), (0.5,)).fingerprints()

    usual = copy()
    assert len(set(usual["training images"])) == 8, "the first, the last and some between"
    assert copy() == usual
    assert copy(label=(label + 1) % 3)["training images"] != usual["training images"]
    assert copy(image=image[::-1])["training images"] != usual["training images"]
    assert copy(image=image[::-1])["evaluated images"] == usual["evaluated images"]
    unreadable = copy(label=np.where(label == label[-1], UNREADABLE, label))["training images"]
    assert unreadable[-1] is None
    assert unreadable[0] == usual["training images"][0]
    assert len(copy(image=image[:3], label=label[:3])["training images"]) == 3


@pytest.mark.slow
@pytest.mark.usefixtures("unoptimized")
def test_two_processes_do_not_train_with_different_labels(tmp_path):
    """A folder of a class has another name on the second machine, so all of its labels are others."""
    for host, names in enumerate((("apple", "banana"), ("banana", "zucchini"))):
        for split in ("train", "val"):
            for number in range(8):
                folder = tmp_path / f"host{host}" / "fruit" / split / names[number % 2]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{number}.jpg").write_bytes(jpeg(np.full((8, 8, 3), 30 * number, np.uint8)))
    flags = ["--data.name", "fruit", "--data.image-size", "16", "--data.batch-size", "4", "--run-dir"]
    arguments = ["train", *SMALL, *flags, str(tmp_path / "run"), "--data.root"]
    together = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    with contextlib.ExitStack() as started:
        jobs = [
            started.enter_context(
                Job(
                    tmp_path / f"log{host}",
                    [*arguments, str(tmp_path / f"host{host}")],
                    num_devices=1,
                    variables=together | {"JAX_PROCESS_ID": str(host)},
                )
            )
            for host in range(2)
        ]
        assert [job.exit_codes() for job in jobs] == [[2], [2]]
    for job in jobs:
        assert "process 1 has 'banana' as class 0" in job.output()
    assert not (tmp_path / "run").exists()
