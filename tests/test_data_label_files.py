"""Files with all right answers of each evaluated image: what they say of an image, and which are refused."""

from pathlib import Path

import pytest

from gnp_scale.config import ConfigError
from gnp_scale.data.label_files import read_label_file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[0], [2]]", r"has \[2\]: a list of labels below 2 is due"),
        ("[0, 1]", "has 0: a list of labels below 2 is due"),
        ("5", "has 5: a list of labels below 2 is due"),
        ("[[true]]", r"has \[True\]: a list of labels below 2 is due"),
        ("{", "cannot be read"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": 0, "b": 1, "a": 1}', "cannot be read: it names a more than once"),
        ("[[], []]", "has no right answer: give the file of this data set"),
    ],
    ids=lambda text: text[:20],
)
def test_a_file_of_other_labels_is_refused(text: str, message: str, tmp_path: Path):
    (tmp_path / "real.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_label_file(tmp_path / "real.json", 2)


def test_labels_are_found_by_the_number_or_the_name_of_an_image(tmp_path: Path):
    path = tmp_path / "real.json"
    path.write_text("[[5], [], [7, 8]]")
    by_number = read_label_file(path, 9)
    names = ("val/n01/ILSVRC2012_val_00000003.JPEG", "ILSVRC2012_val_00000002.JPEG")
    assert [by_number.labels(name).tolist() for name in names] == [[7, 8], [-1, -1]]
    for name in ("ILSVRC2012_val_00000004.JPEG", "ILSVRC2012_val_00000000.JPEG", "cat.JPEG"):
        with pytest.raises(ConfigError, match=f"has no labels for the image {name}"):
            by_number.labels(name)
    path.write_text('{"a/cat.jpeg": 3, "dog": [1, 2]}')
    by_name = read_label_file(path, 9)
    assert [by_name.labels(name).tolist() for name in ("x/cat.JPEG", "dog.png")] == [[3, -1], [1, 2]]
    path.write_text("[[2, 2, 1, 2], [0]]", "utf-8-sig")
    assert read_label_file(path, 9).labels("1.png").tolist() == [1, 2], (
        "each answer once, and a mark of Windows is read"
    )


def test_images_of_one_name_in_several_folders_are_told_apart_or_refused(tmp_path: Path):
    path = tmp_path / "real.json"
    path.write_text('{"val/cat/0.png": 3, "val/dog/0.png": 4, "cat/photo.a.jpg": 5, "cat/photo.b.jpg": 6}')
    labels = read_label_file(path, 9)
    names = ("val/cat/0.png", "val/dog/0.png", "cat/photo.b.jpg", "photo.a.webp", "val/cat/0.png")
    assert [labels.labels(name).tolist() for name in names] == [[3], [4], [6], [5], [3]]
    with pytest.raises(ConfigError, match=r"has no labels for the image val/bird/0\.png"):
        labels.labels("val/bird/0.png")
    for text in ('{"0.png": 3}', "[[3]]"):
        path.write_text(text.replace("0", "1"))
        labels = read_label_file(path, 9)
        labels.labels("cat/1.png")
        with pytest.raises(ConfigError, match=r"has one entry for the images cat/1\.png and dog/1\.png: make it"):
            labels.labels("dog/1.png")
