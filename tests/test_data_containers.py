"""Every form of a data set gives the images and labels that were written, and finds bytes that have changed."""

import json
import os
import re
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from image_sets import (
    CLASS_NAMES,
    NUM_IMAGES,
    NUM_TRAIN,
    WRITERS,
    add,
    png,
    write_folder,
    write_grocery,
    write_imagenet,
    write_tfds,
    write_webdataset,
)

from gnp_scale.cli import main
from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data import decode
from gnp_scale.data.containers import byte_ranges, example_proto, open_folder
from gnp_scale.data.containers.open_folder import INDEX_FILE, write_index
from gnp_scale.data.containers.record import Contents
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.data.sources import load

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def opened(path: Path) -> Contents:
    return open_folder.open_folder(str(path))


def values(contents: Contents, split: str) -> list[tuple[int, str]]:
    """The value of each image and the name of its class."""
    source = contents.splits[split]
    records = source.read(range(len(source)))
    assert [record.problem for record in records] == [""] * len(records)
    return [(int(decode.pixels_of(record.data)[0, 0, 0]), contents.class_names[record.label]) for record in records]


def expected(numbers: range, names: tuple[str, ...] = CLASS_NAMES) -> list[tuple[int, str]]:
    return [(number, names[number % 3]) for number in numbers]


@pytest.mark.parametrize("form", WRITERS)
def test_a_form_gives_what_was_written(form: str, folder: Path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    names = ("n03", "n07", "n09") if form == "imagenet_tars" else CLASS_NAMES
    path = WRITERS[form](folder)
    # The second time there is an index.
    for contents in (opened(path), opened(path)):
        assert contents.form == form
        assert sorted(contents.class_names) == sorted(names)
        assert sorted(values(contents, "train")) == expected(range(NUM_TRAIN), names)
        assert sorted(values(contents, "validation")) == expected(range(NUM_TRAIN, NUM_IMAGES), names)
        labels = [record.label for record in contents.splits["train"].read(range(NUM_TRAIN))]
        np.testing.assert_array_equal(contents.splits["train"].labels(), labels)


@pytest.mark.parametrize("form", WRITERS)
def test_records_are_read_in_any_order_by_many_threads(form: str, folder: Path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    source = opened(WRITERS[form](folder)).splits["train"]
    whole = source.read(range(NUM_TRAIN))
    found = {}

    def read(seed: int) -> None:
        ids = np.random.default_rng(seed).integers(0, NUM_TRAIN, 50)
        found[seed] = source.read(ids) == [whole[number] for number in ids]

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(8), True)


def flip_bit(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("form", ["image_folder", "webdataset", "imagenet_tars", "grocery_store", "tfds"])
def test_a_flipped_bit_is_found_in_its_record_only(form: str, folder: Path):
    path = WRITERS[form](folder)
    before = opened(path).splits["train"].read(range(NUM_TRAIN))
    target = before[2].data
    for file in sorted(path.rglob("*")):
        if file.is_file() and (place := file.read_bytes().find(target)) >= 0:
            flip_bit(file, place + len(target) // 2)
            break
    else:
        # Shards of TensorFlow Datasets are compressed.
        flip_bit(path / "numbers-train.array_record-00000-of-00002", 1 << 16 | 60)
    after = opened(path).splits["train"].read(range(NUM_TRAIN))
    damaged = [number for number, record in enumerate(after) if record.problem]
    assert len(damaged) == 1
    assert [record for record in after if not record.problem] == [
        record for number, record in enumerate(before) if number not in damaged
    ]


def test_a_file_that_is_gone_is_the_problem_of_its_record(folder: Path):
    before = opened(write_folder(folder)).splits["train"].read(range(NUM_TRAIN))
    (folder / before[3].name).unlink()
    after = opened(folder).splits["train"].read(range(NUM_TRAIN))
    assert [bool(record.problem) for record in after] == [number == 3 for number in range(NUM_TRAIN)]
    assert after[3].problem == "it cannot be read (No such file or directory)"


@pytest.mark.parametrize("damage", ["missing", "truncated", "another", "empty"])
def test_a_damaged_shard_is_named(damage: str, folder: Path):
    path = write_tfds(folder)
    shard = path / "numbers-train.array_record-00001-of-00002"
    content = shard.read_bytes()
    other = (path / "numbers-validation.array_record-00001-of-00002").read_bytes()
    shard.unlink()
    if damage != "missing":
        shard.write_bytes({"truncated": content[:70_000], "another": other, "empty": b""}[damage])
    source = opened(path).splits["train"]
    assert not source.read([0])[0].problem
    with pytest.raises(DamagedFileError, match=shard.name):
        source.read([NUM_TRAIN - 1])


def test_an_index_is_kept_in_the_cache_or_by_command_in_the_data_set(folder: Path, cache: Path):
    opened(write_folder(folder))
    (kept,) = (cache / "gnp_scale" / "index").iterdir()
    assert not (folder / INDEX_FILE).exists()
    (folder / "train" / "zero" / "late.png").write_bytes(png(0))
    assert len(opened(folder).splits["train"]) == NUM_TRAIN + 1
    write_index(folder)
    # The index in the data set counts for all users, until the command is given again.
    assert kept.exists()
    (folder / "train" / "zero" / "later.png").write_bytes(png(0))
    assert len(opened(folder).splits["train"]) == NUM_TRAIN + 1


def test_images_that_were_replaced_are_indexed_anew(folder: Path):
    """Nobody has asked for an index here, so nobody can be told to make it again."""
    before = values(opened(write_folder(folder)), "train")
    for path in folder.rglob("*.PNG"):
        path.write_bytes(path.read_bytes() + b"some other bytes")
    assert values(opened(folder), "train") == before


def test_a_large_set_is_not_indexed_by_the_way(folder: Path, monkeypatch):
    monkeypatch.setattr(open_folder, "MOST_BYTES", 100)
    with pytest.raises(
        ConfigError, match=rf"^{folder} has .* without checksums: run gnp-scale data index {folder} once"
    ):
        opened(write_folder(folder))
    write_index(folder)
    assert len(opened(folder).splits["train"]) == NUM_TRAIN


def test_a_damaged_index_is_named(folder: Path):
    write_index(write_folder(folder))
    (folder / INDEX_FILE).write_bytes((folder / INDEX_FILE).read_bytes()[:-100])
    with pytest.raises(DamagedFileError, match=f"{INDEX_FILE} is not a whole index .*: remove it"):
        opened(folder)


@pytest.mark.parametrize(
    "header", [b"", b"{", b"[]", b"{}", b'{"splits": []}', b'{"splits": {"train": 3}}', b'{"splits": {}, "form": "a"}']
)
def test_an_index_of_another_form_is_named(header: bytes, folder: Path):
    write_index(write_folder(folder))
    with np.load(folder / INDEX_FILE) as stored:
        arrays = dict(stored) | {"header": np.frombuffer(header, np.uint8)}
    with (folder / INDEX_FILE).open("wb") as file:
        np.savez(file, **arrays)
    with pytest.raises(DamagedFileError, match=f"{INDEX_FILE} is not a whole index .*: remove it"):
        opened(folder)


def test_an_index_cannot_contain_code(folder: Path):
    write_folder(folder)

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(folder / "run"),)

    np.savez(folder / INDEX_FILE, header=np.array([Code()], object))
    with pytest.raises(DamagedFileError):
        opened(folder)
    assert not (folder / "run").exists()


def test_folders_named_by_numbers_are_in_their_order(folder: Path):
    for label in (0, 2, 10):
        (folder / str(label)).mkdir()
        (folder / str(label) / "x.png").write_bytes(png(label))
    contents = opened(folder)
    assert contents.class_names == ("0", "2", "10")
    assert values(contents, "train") == [(0, "0"), (2, "2"), (10, "10")]


def test_hidden_files_and_folders_hold_no_images(folder: Path):
    """macOS puts `._1.png` beside 1.png, with other bytes, and Jupyter puts copies into `.ipynb_checkpoints`."""
    write_folder(folder)
    for name in ("train/zero/._0.png", "train/one/.ipynb_checkpoints/1-checkpoint.png", "val/two/sub/.x/8.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(99))
    (folder / "val" / "two" / "sub" / "8.png").write_bytes(png(8))
    contents = write_index(folder)
    assert sorted(values(contents, "train")) == expected(range(NUM_TRAIN))
    assert sorted(values(contents, "validation")) == sorted([*expected(range(NUM_TRAIN, NUM_IMAGES)), (8, "two")])


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_a_hidden_file_is_no_container(form: str, folder: Path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    WRITERS[form](folder)
    for path in [*folder.rglob("*.tar"), *folder.rglob("*.parquet")]:
        (path.parent / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07")
    assert sorted(values(opened(folder), "train")) == expected(range(NUM_TRAIN))


def test_folders_named_by_other_digits_are_in_the_order_of_their_names(folder: Path):
    for label, name in enumerate(("²", "³")):
        (folder / name).mkdir()
        (folder / name / "x.png").write_bytes(png(label))
    assert opened(folder).class_names == ("²", "³")


@pytest.mark.parametrize(
    ("file", "content"),
    [("train.txt", "train/0.jpg, 0\n"), ("val.txt", "val/7.jpg, one, 0\n"), ("classes.csv", "a,b\n1,2\n")],
)
def test_lists_of_groceries_in_another_form_are_one_line(file: str, content: str, folder: Path):
    write_grocery(folder)
    (folder / file).write_text(content)
    with pytest.raises(ConfigError, match=r"has lists of another form .*: get them again"):
        opened(folder)


def test_a_photograph_that_is_listed_and_not_there_is_named(folder: Path):
    write_grocery(folder)
    (folder / "train" / "0.jpg").unlink()
    with pytest.raises(
        ConfigError, match=r"^\S*train/0\.jpg is listed but cannot be read \(No such file or directory\)$"
    ):
        opened(folder)


def test_a_folder_that_is_listed_as_a_photograph_is_named(folder: Path):
    write_grocery(folder)
    (folder / "train" / "0.jpg").unlink()
    (folder / "train" / "0.jpg").mkdir()
    with pytest.raises(ConfigError, match=r"^\S*train/0\.jpg is listed but is no file: correct the list, or get"):
        opened(folder)


@pytest.mark.parametrize("name", ["../secret.png", "train/../../secret.png", "{tmp_path}/secret.png"])
@pytest.mark.parametrize("form", ["grocery_store", "image_folder", "webdataset", "tfds"])
def test_no_list_leads_out_of_the_data_set(form: str, name: str, folder: Path, tmp_path: Path):
    """Who gets a data set from others does not train on, or publish, files of their own."""
    (tmp_path / "secret.png").write_bytes(png(1))
    outside = name.format(tmp_path=tmp_path)
    path = WRITERS[form](folder)
    if form == "grocery_store":
        (path / "train.txt").write_text(f"train/0.jpg, 0, 0\n{outside}, 1, 0\n")
    elif form == "tfds":
        info = path / "dataset_info.json"
        info.write_text(info.read_text().replace('"shardLengths"', f'"filepathTemplate": "{outside}", "shardLengths"'))
    else:
        contents = write_index(path)
        train = contents.splits["train"]
        assert isinstance(train, byte_ranges.ByteRanges)
        files = (outside, *train.files[1:]) if train.files else ()
        arrays = train.arrays if files else train.arrays | {"name": np.array([outside.encode()] * NUM_TRAIN)}
        changed = byte_ranges.ByteRanges(path, files, arrays)
        byte_ranges.save(path / INDEX_FILE, Contents(contents.form, contents.class_names, {"train": changed}))
    with pytest.raises(DamagedFileError, match=rf" names {re.escape(outside)}, which is outside of the data set: "):
        opened(path)


def test_a_list_that_is_not_there_is_named_by_all_that_read_it(folder: Path, tmp_path: Path, capsys):
    """Not the folder of the output, nor the name of the data set, which are right."""
    write_grocery(folder)
    (folder / "val.txt").unlink()
    expected = f"{folder}/val.txt cannot be read (No such file or directory): get it again, or mend its rights"
    with pytest.raises(ConfigError, match=f"^{re.escape(expected)}$"):
        load(DataConfig(folder.name, root=str(folder.parent)))
    for command in ("index", "verify", "show", "prepare"):
        out = [str(tmp_path / "out")] if command == "prepare" else []
        assert main(["data", command, str(folder), *out]) == 2
        assert capsys.readouterr().err == f"gnp-scale: {expected}\n"


def test_a_list_that_is_gone_since_the_index_was_made_is_named(folder: Path, capsys):
    write_index(write_grocery(folder))
    (folder / "val.txt").unlink()
    assert main(["data", "verify", str(folder)]) == 2
    assert f"{folder}/val.txt cannot be read (No such file or directory): " in capsys.readouterr().err


def test_validation_images_without_the_devkit_are_refused(folder: Path):
    write_imagenet(folder)
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(ConfigError, match="has the labels of the validation images"):
        opened(folder)


@pytest.mark.parametrize("damage", ["compressed", "text", "cut"])
def test_a_file_that_is_no_plain_tar_is_named(damage: str, folder: Path):
    write_webdataset(folder)
    shard = folder / "set-train-0001.tar"
    if damage == "compressed":
        with tarfile.open(shard, "w:gz") as tar:
            add(tar, "0.png", png(0))
    else:
        shard.write_bytes(b"no tar" * 200 if damage == "text" else shard.read_bytes()[:700])
    with pytest.raises(DamagedFileError, match=f"{shard.name} is not a whole, uncompressed tar file"):
        opened(folder)


@pytest.mark.parametrize("label", ["seven", "-1", "3000000000"])
def test_a_label_that_no_class_can_have_is_named(label: str, folder: Path):
    """Names of three billion classes would fill the memory."""
    with tarfile.open(folder / "train.tar", "w") as tar:
        add(tar, "7.png", png(7))
        add(tar, "7.cls", label.encode())
    with pytest.raises(DamagedFileError, match=rf"has the label b'{label}' in 7\.cls: a whole number below 1000000"):
        opened(folder)


def test_tar_files_without_an_example_are_named(folder: Path):
    with tarfile.open(folder / "train.tar", "w") as tar:
        add(tar, "7.png", png(7))
    with pytest.raises(DamagedFileError, match=r"has tar files, but no image with a \.cls beside it"):
        opened(folder)


@pytest.mark.parametrize(("write", "file"), [(write_webdataset, "classnames.txt"), (write_tfds, "kind.labels.txt")])
def test_names_of_classes_in_another_encoding_are_named(write: Callable[[Path], Path], file: str, folder: Path):
    written = write(folder)
    (path,) = written.glob(file)
    path.write_bytes("caf\xe9\nb\nc\n".encode("latin-1"))
    with pytest.raises(DamagedFileError, match=r"is no text in UTF-8 .*: write it in UTF-8$"):
        opened(written)


def test_a_label_without_a_class_is_refused(folder: Path):
    write_grocery(folder)
    (folder / "train.txt").write_text("train/0.jpg, 3, 0\n")
    with pytest.raises(DamagedFileError, match=r"train/0\.jpg has the label 3, where there are 3 classes"):
        opened(folder)


def test_a_folder_without_images_is_refused(folder: Path):
    (folder / "notes").mkdir()
    (folder / "notes" / "read.me").write_text("no image")
    with pytest.raises(ConfigError, match="holds no data set"):
        opened(folder)


@pytest.mark.parametrize("has_names", [True, False])
def test_labels_that_are_words_are_refused(has_names: bool, folder: Path):
    """A column of words is found before any of its rows is read."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}} if has_names else {}
    table = pa.table({"image": [png(0), png(1)], "label": ["cat", "dog"]})
    stored = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(stored), folder / "train.parquet")
    with pytest.raises(
        ConfigError, match=r"^\S*train\.parquet has labels of the type string in the column label: give whole numbers"
    ):
        opened(folder)


@pytest.mark.parametrize("description", [b"{", b"[]", b'{"info": 3}', b'{"info": {"features": [1]}}'])
def test_features_of_another_form_are_one_line(description: bytes, folder: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"image": [png(0)], "label": [0]})
    pq.write_table(table.replace_schema_metadata({b"huggingface": description}), folder / "train.parquet")
    with pytest.raises(
        DamagedFileError, match=r"train\.parquet is not a whole Parquet file: it has features of another"
    ):
        opened(folder)


def test_each_file_of_a_set_needs_the_columns(folder: Path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    pq.write_table(pa.table({"image": [png(0)], "label": [0]}), folder / "train-0.parquet")
    pq.write_table(pa.table({"image": [png(1)], "kind": [1]}), folder / "train-1.parquet")
    with pytest.raises(ConfigError, match=r"train-1\.parquet has the columns image, kind: it needs image and label"):
        opened(folder)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("features.json", '"featuresDict"', '"other"'),
        ("features.json", '"classLabel"', '"other"'),
        ("features.json", '"numClasses": "3"', '"numClasses": "three"'),
        ("dataset_info.json", '"splits"', '"other"'),
        ("dataset_info.json", '"shardLengths"', '"filepathTemplate": "{OTHER}", "shardLengths"'),
        ("dataset_info.json", "{", "[{"),
    ],
)
def test_descriptions_of_another_form_are_one_line(file: str, old: str, new: str, folder: Path):
    path = write_tfds(folder) / file
    assert old in path.read_text()
    text = path.read_text().replace(old, new, 1)
    path.write_text(text + "]" * (new == "[{"))
    with pytest.raises(DamagedFileError, match=r"1\.0\.0 has a dataset_info\.json or features\.json of another form"):
        opened(path.parent)


def test_a_set_in_files_without_random_access_is_refused(folder: Path):
    path = write_tfds(folder)
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    with pytest.raises(ConfigError, match="is in tfrecord files, which have no random access"):
        opened(path)


@pytest.mark.parametrize("record", [b"", b"no example", b"\xff" * 40, example_proto.serialize(b"x", 0, "y")[:-4]])
def test_a_record_that_is_no_example_is_an_error(record: bytes):
    with pytest.raises(ValueError, match="example"):
        example_proto.parse(record, "image", "label")
