"""A run has the same number of images and classes in all processes and at all starts, or it ends with one line."""

import json

import pytest

from gnp_scale.config import ConfigError
from gnp_scale.run import data_sizes as module
from gnp_scale.run.data_sizes import check_sizes_agree, keep_sizes
from gnp_scale.run.layout import DATA_FILE

SIZES = {"training images": 2640, "evaluated images": 296, "classes": 81}


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


def test_processes_with_different_copies_end_together(monkeypatch):
    theirs = [(SIZES, "node1"), (SIZES, "node2"), (SIZES | {"training images": 2600}, "node3")]
    monkeypatch.setattr(module, "all_gather", lambda mine: theirs)
    with pytest.raises(ConfigError) as error:
        check_sizes_agree(SIZES)
    assert str(error.value) == (
        "process 2 has 2600 training images on node3, but process 0 has 2640 training images on node1: give all the "
        "same data set"
    )


def test_one_process_agrees_with_itself():
    check_sizes_agree(SIZES)
