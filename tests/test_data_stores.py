"""Data sets on gs:// and s3://: the images of a local folder, whatever the store does; mistakes are one line."""

import time
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from image_sets import NUM_TRAIN, write_folder, write_grocery, write_imagenet, write_tfds, write_webdataset
from launcher import SMALL, Job
from store_proxy import cut, delay, drop, refuse
from stores import LocalStore, forget_connections

from gnp_scale.cli import main
from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data.containers import byte_ranges
from gnp_scale.data.containers.open_folder import INDEX_FILE, open_folder, write_index
from gnp_scale.data.containers.record import Source
from gnp_scale.data.images import num_threads
from gnp_scale.data.pipeline import train_batches
from gnp_scale.data.prepare import prepare
from gnp_scale.data.sources import load
from gnp_scale.run.data_sizes import keep_sizes
from gnp_scale.run.store import StorePath
from gnp_scale.run.store_requests import StoreError

INDEXED = {
    "image_folder": write_folder,
    "webdataset": write_webdataset,
    "imagenet_tars": write_imagenet,
    "grocery_store": write_grocery,
}

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set with an index."""
    (tmp_path / "data" / "numbers").mkdir(parents=True)
    write_index(write_folder(tmp_path / "data" / "numbers"))
    return tmp_path / "data" / "numbers"


def uploaded(folder: Path, store: LocalStore) -> StorePath:
    """A copy of the folder in a bucket."""
    target = store.folder().parent / folder.name
    for path in folder.rglob("*"):
        if path.is_file():
            (target / str(path.relative_to(folder))).write_bytes(path.read_bytes())
    return target


def training(folder: Path | StorePath) -> Source:
    return open_folder(str(folder)).splits["train"]


def batches(folder: Path | StorePath) -> list[dict[str, np.ndarray]]:
    config = DataConfig(folder.name, root=str(folder.parent), image_size=8, batch_size=8, eval_batch_size=8)
    found = train_batches(load(config), config, seed=5, start_step=3, num_steps=3)
    return [{name: np.asarray(array) for name, array in batch.items()} for batch in found]


def test_batches_are_those_of_a_local_folder(store, folder, tmp_path, set_mesh):
    """Of files, and of the tar files that are prepared for a bucket."""
    set_mesh(8)
    tars = tmp_path / "tars"
    prepare(folder, tars, 3000, 2, "webdataset")
    expected = batches(folder)
    for other in (tars, uploaded(folder, store), uploaded(tars, store)):
        assert jax.tree.all(jax.tree.map(np.array_equal, expected, batches(other))), other


@pytest.mark.parametrize("form", INDEXED)
def test_every_form_with_an_index_is_read_from_a_store(form, store, tmp_path):
    path = INDEXED[form](tmp_path)
    write_index(path)
    local, stored = open_folder(str(path)), open_folder(str(uploaded(path, store)))
    assert (stored.form, stored.class_names) == (local.form, local.class_names)
    for name, split in local.splits.items():
        ids = [*range(len(split)), 0]
        assert stored.splits[name].read(ids) == split.read(ids)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "missing"])
def test_a_damaged_object_is_the_problem_of_its_record(damage, store, folder):
    stored = uploaded(folder, store)
    before = training(stored).read(range(NUM_TRAIN))
    data, path = bytearray(before[3].data), stored / before[3].name
    data[40] ^= 4
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"flipped": bytes(data), "truncated": before[3].data[:30], "empty": b""}[damage])
    after = training(stored).read(range(NUM_TRAIN))
    problem = "it cannot be read (no such object)" if damage == "missing" else "its bytes are not those of the index"
    assert [record.problem for record in after] == [problem * (number == 3) for number in range(NUM_TRAIN)]
    assert after[:3] + after[4:] == before[:3] + before[4:]


def test_a_truncated_tar_file_is_the_problem_of_the_records_that_it_lacks(store, tmp_path):
    write_index(write_webdataset(tmp_path))
    stored = uploaded(tmp_path, store)
    shard = stored / "set-train-0000.tar"
    whole = training(stored).read(range(NUM_TRAIN))
    shard.write_bytes(shard.read_bytes()[:3000])
    problems = [record.problem for record in training(stored).read(range(NUM_TRAIN))]
    assert [bool(problem) for problem in problems] == [
        number < 4 and open_folder(str(tmp_path)).splits["train"].entry(number).offset > 2900
        for number in range(len(whole))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("fault", [refuse(503), refuse(429), cut, drop], ids=["503", "429", "cut", "drop"])
def test_disturbed_reads_are_tried_again(fault, store, folder):
    source = training(uploaded(folder, store))
    expected = training(folder).read(range(NUM_TRAIN))
    store.proxy.disturb(fault, 10, ".PNG")
    assert source.read(range(NUM_TRAIN)) == expected


def test_records_of_a_chunk_are_read_at_the_same_time(store, folder):
    """Each waits 0.2 s; one after another they would take 3.2 s."""
    source = training(uploaded(folder, store))
    source.read([0])
    store.proxy.disturb(delay(0.2), 16, ".PNG")
    began_s = time.monotonic()
    source.read([number % NUM_TRAIN for number in range(16)])
    assert time.monotonic() - began_s < 1.6
    assert len([line for line in store.proxy.lines if ".PNG" in line and "GET" in line]) >= 17


def test_a_bucket_has_more_threads_than_a_folder_unless_told_otherwise():
    folder, bucket = DataConfig(), DataConfig(root="s3://bucket/data")
    assert num_threads(bucket) == 4 * num_threads(folder)
    assert num_threads(replace(bucket, num_threads=3)) == 3


def test_a_store_that_is_silent_ends_the_read_and_replaces_no_image(store, folder):
    stored = replace(uploaded(folder, store), deadline_s=0.5)
    source = byte_ranges.load(stored / INDEX_FILE, stored).splits["train"]
    store.proxy.disturb(delay(1.0), 100)
    with pytest.raises(StoreError, match=r"PNG has not answered for 0\.5 s.*: start the same command"):
        source.read([0, 1])


def test_a_store_that_refuses_ends_the_read(store, folder):
    source = training(uploaded(folder, store))
    store.proxy.disturb(refuse(403), 100)
    with pytest.raises(ConfigError, match=r"PNG cannot be read .* check the bucket, and the credentials"):
        source.read([0])


def shown(folder: StorePath | str, tmp_path: Path) -> int:
    return main(["data", "show", str(folder), "--out", str(tmp_path / "x.png"), "--data.image-size", "8"])


def test_a_set_without_an_index_names_the_command(store, folder, tmp_path, capsys):
    stored = uploaded(folder, store)
    (stored / INDEX_FILE).unlink()
    assert shown(stored, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no index (.gnp_scale_index.npz): run gnp-scale data index numbers on a local copy, and " in line
    upload = {"s3": f"aws s3 cp --recursive numbers {stored}", "gs": f"gcloud storage cp -r numbers {stored.parent}/"}
    assert line.endswith(upload[store.scheme])


@pytest.mark.parametrize("path", ["no-such-bucket/data/numbers", "bucket/nothing/numbers"])
def test_a_wrong_bucket_or_set_is_one_line(path, store, tmp_path, capsys):
    assert shown(f"{store.scheme}://{path}", tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"there is nothing below {store.scheme}://{path}: name a bucket that exists" in line


def test_a_store_that_refuses_is_one_line(store, folder, tmp_path, capsys):
    stored = uploaded(folder, store)
    store.proxy.disturb(refuse(403), 1000)
    assert shown(stored, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{stored} cannot be read (" in line
    assert line.endswith("check the bucket, and the credentials in the environment")


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_missing_credentials_are_one_line(store, folder, tmp_path, monkeypatch, capsys):
    stored = uploaded(folder, store)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    forget_connections()
    assert shown(stored, tmp_path) == 2
    forget_connections()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{stored} cannot be read (NoCredentialsError" in line


@pytest.mark.parametrize("store", ["gs"], indirect=True)
def test_anonymous_reads_that_google_refuses_are_one_line(store, folder, tmp_path, monkeypatch, capsys):
    stored = uploaded(folder, store)
    monkeypatch.setattr(store.server, "needs_credentials", True)
    assert shown(stored, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{stored} cannot be read (" in line
    assert "Anonymous caller" in line


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_array_records_on_s3_name_the_way_out(store, tmp_path, capsys):
    stored = uploaded(write_tfds(tmp_path), store)
    assert shown(stored, tmp_path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "ArrayRecord shards, which are read from local disks and gs:// only" in line
    assert "gnp-scale data prepare SOURCE 1.0.0 --form webdataset, and aws s3 cp --recursive 1.0.0 s3://" in line


@pytest.mark.parametrize("command", ["index", "prepare", "verify"])
def test_other_commands_need_a_local_folder(command, tmp_path, capsys):
    out = [str(tmp_path / "out")] if command == "prepare" else []
    assert main(["data", command, "s3://bucket/data/numbers", *out]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "this command needs a local folder; give the one that is copied to the bucket" in line
    assert list(tmp_path.iterdir()) == []


def test_a_set_on_a_store_is_shown(store, folder, tmp_path, capsys):
    assert shown(folder, tmp_path) == 0
    expected, picture = capsys.readouterr().out, (tmp_path / "x.png").read_bytes()
    assert shown(uploaded(folder, store), tmp_path) == 0
    assert capsys.readouterr().out == expected
    assert (tmp_path / "x.png").read_bytes() == picture


@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_run_keeps_to_the_number_of_images_in_the_bucket(store, folder, tmp_path):
    stored = uploaded(folder, store)
    config = DataConfig("numbers", root=str(stored.parent))
    keep_sizes(tmp_path, load(config).sizes)
    keep_sizes(tmp_path, load(config).sizes)
    (folder / "train" / "two" / "2.PNG").unlink()
    write_index(folder)
    (stored / INDEX_FILE).write_bytes((folder / INDEX_FILE).read_bytes())
    with pytest.raises(ConfigError, match="with 7 training images, and now it has 6 training images"):
        keep_sizes(tmp_path, load(config).sizes)


@pytest.mark.slow
@pytest.mark.usefixtures("unoptimized")
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_run_reads_a_store_and_with_a_wrong_bucket_leaves_no_folder(store, folder, tmp_path):
    recipe, *flags = SMALL
    flags += ["--train.num-steps", "2", "--optim.warmup-steps", "1", "--data.name", "numbers", "--data.image-size", "8"]
    flags += ["--data.eval-batch-size", "8", "--data.batch-size", "8", "--run-dir", str(tmp_path / "run")]
    job = Job(tmp_path / "wrong", ["train", recipe, *flags, "--data.root", "s3://no-such-bucket/data"], num_devices=1)
    assert job.exit_codes() == [2], job.output()
    assert len(job.output().splitlines()) == 1
    assert not (tmp_path / "run").exists()
    root = str(uploaded(folder, store).parent)
    job = Job(tmp_path / "right", ["train", recipe, *flags, "--data.root", root], num_devices=1)
    assert job.exit_codes() == [0], job.output()
