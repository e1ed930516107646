"""`gnp-scale data`: what is prepared is what was there, whatever is killed."""

import contextlib
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_sets import CLASS_NAMES, NUM_IMAGES, WRITERS, jpeg, photograph, png, train_shards, write_folder
from PIL import Image

from gnp_scale.cli import main
from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data import prepare as module
from gnp_scale.data.containers.open_folder import open_folder, write_index
from gnp_scale.data.containers.record import Record
from gnp_scale.data.label_files import LabelFile
from gnp_scale.data.manifest import JOURNAL_FILE, Manifest
from gnp_scale.data.prepare import prepare
from gnp_scale.data.shard_forms import SHARD_FORMS
from gnp_scale.data.sources import load
from gnp_scale.data.verify import verify
from gnp_scale.run.files import NEW_SUFFIX

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture(params=SHARD_FORMS)
def to(request) -> str:
    """The form of the shards."""
    return request.param


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("form", WRITERS)
def test_what_is_prepared_is_what_was_there(form: str, to: str, source: Path, tmp_path: Path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    path, out = WRITERS[form](source), tmp_path / "out"
    manifest = prepare(path, out, 300, 3, to)
    before, after = open_folder(str(path)), open_folder(str(out))
    assert after.form == {"arrayrecord": "tfds", "webdataset": "webdataset"}[to]
    assert after.class_names == before.class_names
    assert list(after.splits) == list(before.splits)
    for name, split in before.splits.items():
        old, new = split.read(range(len(split))), after.splits[name].read(range(len(split)))
        assert [(record.data, record.label) for record in new] == [(record.data, record.label) for record in old]
    assert len(manifest.splits["train"]) > 1
    assert manifest == Manifest.read(out)
    assert verify(out, 2, decodes=True) == (NUM_IMAGES, [])
    assert not list(out.glob("*.part"))


def test_to_prepare_again_changes_nothing(to: str, source: Path, tmp_path: Path):
    write_folder(source)
    manifest = prepare(source, tmp_path / "out", 300, 3, to)
    before = content(tmp_path / "out")
    assert prepare(source, tmp_path / "out", 300, 1, to) == manifest
    (other,) = SHARD_FORMS.keys() - {to}
    with pytest.raises(ConfigError, match="holds another data set, or one prepared with other options"):
        prepare(source, tmp_path / "out", 300, 1, other)
    assert content(tmp_path / "out") == before
    (tmp_path / "twin" / "out").mkdir(parents=True)
    prepare(source, tmp_path / "twin" / "out", 300, 1, to)
    assert content(tmp_path / "twin" / "out") == before


@pytest.mark.parametrize("before", ["a file", "another set", "another size"])
def test_a_folder_with_something_else_is_not_touched(before: str, source: Path, tmp_path: Path, monkeypatch):
    write_folder(source)
    out = tmp_path / "out"
    out.mkdir()
    if before == "a file":
        (out / "thesis.tex").write_text("years of work")
    else:
        monkeypatch.setattr(module, "_finish", lambda *_: None)
        prepare(source, out, 300 if before == "another set" else 10_000, 1)
        if before == "another set":
            (source / "train" / "zero" / "new.png").write_bytes(png(0))
            write_index(source)
    kept = content(out)
    with pytest.raises(ConfigError, match="is not empty" if before == "a file" else "was begun from another data set"):
        prepare(source, out, 300, 1)
    assert content(out) == kept


def test_a_damaged_source_is_named_and_mended_later(source: Path, tmp_path: Path):
    write_folder(source)
    write_index(source)
    image = source / "train" / "one" / "4.PNG"
    right = image.read_bytes()
    image.write_bytes(right[:-3])
    with pytest.raises(
        ConfigError, match=r"train train/one/4\.PNG cannot be used: its bytes are not those of the index"
    ):
        prepare(source, tmp_path / "out", 300, 2)
    image.write_bytes(right)
    image.write_bytes(b"")
    write_index(source)
    with pytest.raises(ConfigError, match=r"train train/one/4\.PNG cannot be used: it is empty; mend it, or remove it"):
        prepare(source, tmp_path / "of an empty one", 300, 2)
    image.write_bytes(right)
    write_index(source)
    prepare(source, tmp_path / "out", 300, 2)
    assert verify(tmp_path / "out", 2, decodes=True) == (NUM_IMAGES, [])


KILLED = """
import sys
from pathlib import Path
from gnp_scale.data.prepare import prepare
print("begins", flush=True)
prepare(Path(sys.argv[1]), Path(sys.argv[2]), 60_000, 3, sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "to",
    [pytest.param(form, marks=() if form == "arrayrecord" else pytest.mark.long) for form in SHARD_FORMS],
    indirect=True,
)
def test_kills_at_any_moment_change_no_byte(to: str, source: Path, tmp_path: Path):
    """SIGKILL after a random time, again and again until it is done: the same files as without a kill."""
    for number in range(150):
        folder = source / "train" / f"class-{number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.jpg").write_bytes(jpeg(photograph(200, 200, seed=number), quality=95))
    prepare(source, tmp_path / "expected" / "set", 60_000, 3, to)
    out, draw, num_kills, code = tmp_path / "set", random.Random(0), 0, None
    while code is None:
        command = [sys.executable, "-c", KILLED, str(source), str(out), to]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ)
        assert process.stdout is not None
        process.stdout.readline()
        # On a machine of any speed, each attempt writes a shard or a few, and some are killed.
        num_before = len(train_shards(out))
        while process.poll() is None and len(train_shards(out)) == num_before:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.02))
        code = process.poll()
        process.kill()
        process.communicate()
        num_kills += code is None
    assert code == 0
    assert num_kills >= 2
    assert content(out) == content(tmp_path / "expected" / "set")


def encoded(name: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(photograph(8, 8)).save(file, name)
    return file.getvalue()


def test_members_of_tar_files_belong_to_nobody_and_are_named_by_content(source: Path, tmp_path: Path):
    names = {
        "a.b.jpg": ("jpg", jpeg(photograph(8, 8))),
        "a.c.jpg": ("png", png(0)),
        "w.jpg": ("webp", encoded("WEBP")),
        "ILSVRC2012_val_00000293.JPEG": ("bmp", encoded("BMP")),
        "é\n.jpg": ("jpg", jpeg(photograph(8, 8))),
    }
    (source / "one").mkdir()
    for name, (_, data) in names.items():
        (source / "one" / name).write_bytes(data)
    prepare(source, tmp_path / "out", 1 << 20, 1, "webdataset")
    (shard,) = train_shards(tmp_path / "out")
    with tarfile.open(shard) as tar:
        members = tar.getmembers()
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {
        (0, 0, 0, "", 0o644)
    }
    kinds = {member.name.rpartition("/")[2] for member in members if not member.name.endswith(".cls")}
    assert kinds == {"a.jpg", "a.png", "w.webp", "ILSVRC2012_val_00000293.bmp", "é_.jpg"}
    split = open_folder(str(tmp_path / "out")).splits["train"]
    records = split.read(range(len(split)))
    assert sorted(record.data for record in records) == sorted(data for _, data in names.values())
    # Label files still find an image by its name.
    labels = LabelFile(Path("real.json"), {"ILSVRC2012_val_00000293": [7]}, None, 1)
    assert [labels.labels(record.name)[0] for record in records if "ILSVRC" in record.name] == [7]


def test_a_member_of_a_tar_file_has_a_name_even_if_its_image_has_none(tmp_path: Path):
    writer = SHARD_FORMS["webdataset"].open(tmp_path / "x.tar")
    writer.write(0, Record(png(0), 1, "one/.png"))
    writer.close()
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == ["00000000/image.png", "00000000/image.cls"]


def test_the_commands_print_one_line_and_tell_by_the_exit_code(source: Path, tmp_path: Path, capsys):
    write_folder(source)
    out = tmp_path / "numbers"
    assert main(["data", "index", str(source)]) == 0
    assert capsys.readouterr().out == "image_folder: train 7, validation 3 examples of 3 classes\n"
    assert main(["data", "prepare", str(source), str(out)]) == 0
    assert capsys.readouterr().out == "tfds: train 7, validation 3 examples of 3 classes\n"
    assert main(["data", "verify", str(out), "--decode"]) == 0
    assert capsys.readouterr().out == f"{out}: 10 examples, 0 problems\n"
    train_shards(out)[0].unlink()
    assert main(["data", "verify", str(out)]) == 1
    assert capsys.readouterr().out.endswith(f"{out}: 10 examples, 1 problems\n")
    tars = tmp_path / "tars"
    assert main(["data", "prepare", str(source), str(tars), "--form", "webdataset"]) == 0
    assert capsys.readouterr().out == "webdataset: train 7, validation 3 examples of 3 classes\n"
    assert main(["data", "verify", str(tars)]) == 0
    assert capsys.readouterr().out == f"{tars}: 10 examples, 0 problems\n"
    assert main(["data", "verify", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_show_writes_a_picture_and_the_classes(source: Path, tmp_path: Path, capsys):
    write_folder(source)
    path = tmp_path / "images.png"
    assert main(["data", "show", str(source), "--out", str(path), "--data.image-size", "8", "--data.flip"]) == 0
    picture = np.asarray(Image.open(path))
    assert picture.shape == (5 * 10, 7 * 10, 3)
    # The images of class `one` come first: values 1, 4, then 2, 5, then 0, 3, 6.
    assert picture[4, 4::10, 0].tolist() == [1, 4, 2, 5, 0, 3, 6]
    text = capsys.readouterr().out
    assert "train: 7 examples, 3 classes of 2 to 3" in text


def test_an_unfinished_folder_is_no_data_set(to: str, source: Path, tmp_path: Path, monkeypatch):
    write_folder(source)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: None)
        prepare(source, tmp_path / "out", 300, 1, to)
    assert (tmp_path / "out" / JOURNAL_FILE).exists()
    for read in (lambda folder: open_folder(str(folder)), write_index):
        with pytest.raises(ConfigError, match="out is not finished: run the same gnp-scale data prepare again"):
            read(tmp_path / "out")
    # A kill may leave a file that was to replace another.
    (tmp_path / "out" / f"classes.txt.0123{NEW_SUFFIX}").touch()
    prepare(source, tmp_path / "out", 300, 1, to)
    assert not list((tmp_path / "out").glob(f"*{NEW_SUFFIX}"))
    monkeypatch.undo()
    prepare(source, tmp_path / "out", 300, 1, to)
    assert len(open_folder(str(tmp_path / "out")).splits["train"]) == 7


def test_an_interrupted_prepare_ends_at_once(source: Path, tmp_path: Path):
    write_folder(source)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_write_shard", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tmp_path / "out", 300, 1)
    prepare(source, tmp_path / "out", 300, 1)


def test_images_that_came_later_are_prepared_too(source: Path, tmp_path: Path):
    """The index in the user's cache is of the images that are there."""
    prepare(write_folder(source), tmp_path / "before", 300, 1)
    (source / "train" / "a new class").mkdir()
    (source / "train" / "a new class" / "first.png").write_bytes(png(1))
    contents = open_folder(str(source))
    prepare(source, tmp_path / "after", 300, 1)
    before, after = (open_folder(str(tmp_path / name)) for name in ("before", "after"))
    assert len(after.splits["train"]) == len(contents.splits["train"]) == len(before.splits["train"]) + 1
    assert after.class_names == ("a new class", *sorted(CLASS_NAMES))


def test_a_class_that_was_removed_is_no_class(source: Path):
    """Also if it was the last one, so that no label changes."""
    write_folder(source)
    assert open_folder(str(source)).class_names == tuple(sorted(CLASS_NAMES))
    for split in ("train", "val"):
        shutil.rmtree(source / split / "zero")
    contents = open_folder(str(source))
    assert contents.class_names == ("one", "two")
    assert {record.problem for part in contents.splits.values() for record in part.read(range(len(part)))} == {""}


def test_two_folders_of_one_split_are_refused(source: Path, tmp_path: Path):
    """One would hide the images of the other."""
    for name in ("dev", "valid"):
        (source / name / "one").mkdir(parents=True)
        (source / name / "one" / "0.png").write_bytes(png(0))
    with pytest.raises(ConfigError, match=r"are folders of the same split: join them, or rename one$"):
        prepare(source, tmp_path / "out", 300, 1)


def test_a_class_with_the_name_of_a_split_is_named(source: Path, tmp_path: Path):
    for name in ("bus", "train"):
        (source / name).mkdir()
        (source / name / "0.png").write_bytes(png(0))
    expected = "train is taken for a split, but holds no folder for each class: make them, or rename it"
    with pytest.raises(ConfigError, match=expected):
        prepare(source, tmp_path / "out", 300, 1)


@pytest.mark.parametrize("name", [b"n\nl", "a\u2028b".encode(), b"\xff"], ids=str)
def test_a_class_whose_name_is_no_line_is_refused_before_anything_is_written(name, to: str, source: Path, tmp_path):
    write_folder(source)
    os.rename(os.fsencode(source / "train" / "two"), os.fsencode(source / "train") + b"/" + name)
    with pytest.raises(ConfigError, match="whose name is no line of UTF-8, as shards need: rename it"):
        prepare(source, tmp_path / "out", 300, 1, to)
    assert not (tmp_path / "out").exists()


def test_a_file_name_that_is_no_text_is_prepared_too(to: str, source: Path, tmp_path: Path):
    write_folder(source)
    Path(os.fsdecode(os.fsencode(source / "train" / "two") + b"/\xff.png")).write_bytes(png(9))
    prepare(source, tmp_path / "out", 300, 1, to)
    assert verify(tmp_path / "out", 2, decodes=True) == (NUM_IMAGES + 1, [])


def test_a_class_without_an_image_is_named(source: Path, tmp_path: Path):
    """It would be an output of the network that is never right. A class may be absent from some of the splits."""
    for name in ("train/full", "val/full", "train/half", "val/half", "val/void"):
        (source / name).mkdir(parents=True)
    for name in ("train/full", "val/full", "train/half"):
        (source / name / "0.png").write_bytes(png(0))
    with pytest.raises(ConfigError, match=r"has no image of the class void: remove its folders, or fill them$"):
        prepare(source, tmp_path / "out", 300, 1)
    (source / "val" / "void").rmdir()
    assert prepare(source, tmp_path / "out", 300, 1).class_names == ("full", "half")


def test_two_do_not_write_into_one_folder(to: str, source: Path, tmp_path: Path, monkeypatch):
    write_folder(source)
    out = tmp_path / "out"
    problems = []

    def finish(*given: Any) -> Manifest:
        """In the middle of the first one, another one begins."""
        with pytest.raises(ConfigError, match="is being written by another gnp-scale data prepare") as caught:
            prepare(source, out, 300, 1, to)
        problems.append(caught.value)
        return right_finish(*given)

    right_finish = module._finish
    monkeypatch.setattr(module, "_finish", finish)
    written = prepare(source, out, 300, 1, to)
    assert len(problems) == 1
    assert prepare(source, out, 300, 1, to) == written == Manifest.read(out)


@pytest.mark.parametrize("when", ["unfinished", "finished"])
@pytest.mark.parametrize("change", ["another name", "other bytes", "another label"])
def test_a_source_that_changed_is_refused(when: str, change: str, source: Path, tmp_path: Path, monkeypatch):
    """With as many images as before: shards of both would lack some images, and have others twice."""
    write_folder(source)
    with monkeypatch.context() as patch:
        if when == "unfinished":
            patch.setattr(module, "_finish", lambda *_: None)
        prepare(source, tmp_path / "out", 300, 1)
    kept = content(tmp_path / "out")
    image = source / "train" / "one" / "1.PNG"
    if change == "other bytes":
        image.write_bytes(png(77))
    else:
        image.rename(source / "train" / ("one" if change == "another name" else "zero") / "11.PNG")
    write_index(source)
    with pytest.raises(ConfigError, match="another data set"):
        prepare(source, tmp_path / "out", 300, 1)
    assert content(tmp_path / "out") == kept


def test_a_journal_that_a_power_cut_emptied_is_begun_again(to: str, source: Path, tmp_path: Path, monkeypatch):
    write_folder(source)
    expected = prepare(source, tmp_path / "whole" / "out", 300, 1, to)
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(module, "_finish", lambda *_: None)
        prepare(source, out, 300, 1, to)
    (out / JOURNAL_FILE).write_bytes(b"")
    assert prepare(source, out, 300, 1, to) == expected
    assert content(out) == content(tmp_path / "whole" / "out")


def test_what_was_written_before_counts_as_images_of_the_whole(to: str, source: Path, tmp_path: Path, monkeypatch):
    write_folder(source)
    counts: list[tuple[int, int]] = []

    @contextlib.contextmanager
    def progress_of(what, num_bytes):
        counts[:] = [(0, num_bytes)]
        yield lambda *done: counts.append(done)

    monkeypatch.setattr(module, "progress_of", progress_of)
    for finish in (lambda *_: None, module._finish):
        monkeypatch.setattr(module, "_finish", finish)
        prepare(source, tmp_path / "out", 300, 1, to)
        (_, total), *done = counts
        assert sum(num for num, _ in done) == NUM_IMAGES
    assert 0.9 * total < sum(size for _, size in done) <= total


def test_what_is_prepared_is_no_part_of_its_source(source: Path):
    with pytest.raises(ConfigError, match=r"lies in SOURCE .*: give a folder beside it$"):
        prepare(write_folder(source), source / "out", 300, 1)
    assert not (source / "out").exists()


def test_a_data_set_that_is_written_here_has_the_name_of_the_folder(source: Path, tmp_path: Path, to: str, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    prepare(write_folder(source), Path(), 300, 1, to)
    assert all(path.name.startswith("here-") for path in train_shards(Path()))
    assert len(open_folder(str(tmp_path / "here")).splits["train"]) == len(open_folder(str(source)).splits["train"])


@pytest.mark.parametrize(
    ("command", "part"),
    [
        ("prepare {source} {file}", "file cannot be written"),
        ("prepare {source} {file}/out", "cannot be written"),
        ("show {source} --out {file}.txt", "give the name of a file that ends in .png"),
        ("show {source} --out {source}", "give the name of a file that ends in .png"),
        ("show {source} --out {file}/x.png", "there is no folder"),
        ("show {source} --data.name other", "cannot be shown"),
        ("show {source} --out {source}/x.png", "x.png cannot be written"),
    ],
)
def test_places_that_cannot_be_written_are_one_line(command: str, part: str, source: Path, tmp_path: Path, capsys):
    write_folder(source)
    (tmp_path / "file").touch()
    (source / "x.png").mkdir()
    arguments = command.format(source=source, file=tmp_path / "file").split()
    assert main(["data", *arguments]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Indexing" not in line]
    assert part in line


def test_a_full_disk_is_one_line(source: Path, to: str, disk, capsys):
    write_folder(source)
    disk.fill()
    assert main(["data", "prepare", str(source), str(disk.path / "out"), "--form", to]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Indexing" not in line]
    assert re.search(r"out cannot be written .*No space left", line)


def test_a_prepared_set_is_read_from_a_bucket(store, source: Path, tmp_path: Path, monkeypatch):
    """By ArrayRecord's own client, and by gcsfs for the files that describe the set."""
    if store.scheme != "gs":
        pytest.skip("ArrayRecord reads gs:// only")
    assert store.server is not None
    monkeypatch.setenv("CLOUD_STORAGE_EMULATOR_ENDPOINT", store.server.url)
    out = tmp_path / "numbers"
    prepare(write_folder(source), out, 300, 1)
    bucket = store.folder().parent / "data"
    for name, data in content(out).items():
        (bucket / "numbers" / name).write_bytes(data)
    dataset = load(DataConfig(name="numbers", root=str(bucket), image_size=8))
    expected = load(DataConfig(name="numbers", root=str(tmp_path), image_size=8))
    chosen = np.array([6, 0, 3])
    np.testing.assert_array_equal(dataset.train.read(chosen, None)["image"], expected.train.read(chosen, None)["image"])
    with pytest.raises(ConfigError, match=r"there is nothing below .*/none"):
        load(DataConfig(name="none", root=str(bucket)))
    (bucket / "numbers" / train_shards(out)[0].name).unlink()
    with pytest.raises(ConfigError, match=f"{train_shards(out)[0].name} is missing"):
        load(DataConfig(name="numbers", root=str(bucket), image_size=8)).train.read(np.arange(7), None)
