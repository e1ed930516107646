"""Paths on object stores: each operation, against servers that speak the real protocols, undisturbed and disturbed."""

import dataclasses
import time

import pytest
from store_proxy import cut, delay, drop, refuse

from gnp_scale.config import Config, ConfigError
from gnp_scale.resilience.rollback import Rollbacks
from gnp_scale.run import store as store_module
from gnp_scale.run.data_sizes import keep_sizes
from gnp_scale.run.find import find_runs
from gnp_scale.run.run_dir import stored_config
from gnp_scale.run.store import StorePath, check_access, run_folder, why_no_run
from gnp_scale.run.store_requests import StoreError


def test_an_object_is_written_read_listed_and_deleted(store):
    folder = store.folder()
    assert folder.names() == []
    assert not (folder / "a").exists()
    (folder / "a").write_text("0123456789")
    (folder / "below" / "b").write_bytes(b"")
    assert (folder / "a").read_text() == "0123456789"
    assert [(folder / "a").read_bytes(tail_bytes=size) for size in (3, 10, 11)] == [
        b"789",
        b"0123456789",
        b"0123456789",
    ]
    assert (folder / "below" / "b").read_bytes(tail_bytes=5) == b""
    ranges = {(0, 3): b"012", (8, 2): b"89", (8, 5): b"89", (10, 1): b"", (99, 5): b"", (3, 0): b""}
    waits = {place: (folder / "a").begin_read(*place) for place in ranges}
    assert {place: wait() for place, wait in waits.items()} == ranges
    assert folder.names() == ["a", "below/"]
    assert (folder / "a").exists()
    assert not (folder / "below").exists()
    (folder / "a").unlink()
    (folder / "a").unlink(missing_ok=True)
    (folder / "below").rmtree()
    (folder / "below").rmtree()
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        (folder / "a").read_bytes()
    with pytest.raises(FileNotFoundError, match="no such object"):
        (folder / "a").begin_read(0, 3)()


def test_an_object_of_several_megabytes_is_written_whole(store):
    """From 1 MiB on, aiohttp warns of a body in one piece."""
    data = bytes(range(256)) * 2**14
    path = store.folder() / "large"
    path.write_bytes(data)
    assert path.read_bytes() == data


def test_one_of_several_writers_creates_an_object(store):
    lock = store.folder() / "lock"
    assert [lock.create(who) for who in (b"first", b"second", b"first")] == [True, False, True]
    assert lock.read_bytes() == b"first"


def test_a_folder_is_not_taken_for_another_with_a_longer_name(store):
    folder = store.folder()
    (folder / "1" / "x").write_bytes(b"")
    (folder / "12" / "x").write_bytes(b"")
    (folder / "1").rmtree()
    assert folder.names() == ["12/"]


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503])
def test_a_refusal_is_tried_again(store, status):
    folder = store.folder()
    store.proxy.disturb(refuse(status))
    (folder / "a").write_bytes(b"1")
    store.proxy.disturb(refuse(status))
    assert (folder / "a").read_bytes() == b"1"


@pytest.mark.slow
@pytest.mark.parametrize("fault", [cut, drop])
def test_a_cut_connection_is_tried_again(store, fault):
    folder = store.folder()
    (folder / "a").write_bytes(b"0123456789" * 100)
    store.proxy.disturb(fault)
    assert (folder / "a").read_bytes() == b"0123456789" * 100


@pytest.mark.slow
@pytest.mark.parametrize("fault", [cut, drop])
def test_who_created_an_object_whose_answer_was_lost_knows_it(store, fault):
    folder = store.folder()
    store.proxy.disturb(fault)
    assert (folder / "lock").create(b"mine")
    assert (folder / "lock").read_bytes() == b"mine"


def test_a_silent_store_fails_at_the_deadline_and_nothing_arrives_later(store):
    folder = dataclasses.replace(store.folder(), deadline_s=0.5)
    store.proxy.disturb(delay(1.5), 100)
    began_s = time.monotonic()
    with pytest.raises(StoreError, match=r"has not answered for 0\.5 s") as error:
        (folder / "a").read_bytes()
    assert time.monotonic() - began_s < 1.4
    assert not error.value.is_lasting


def test_a_store_that_stays_down_is_no_lasting_error(store):
    folder = dataclasses.replace(store.folder(), deadline_s=1.0)
    store.proxy.disturb(refuse(503), 1000)
    reason = (
        f"{folder}/probe has not answered for 1 s at http://.*: start the same command again when its store answers"
    )
    with pytest.raises(StoreError, match=reason) as error:
        check_access(folder, "probe")
    assert not error.value.is_lasting


def test_a_wrong_bucket_is_named(store):
    folder = StorePath(f"{store.scheme}://no-such-bucket/run")
    assert "there is no such bucket" in str(check_access(folder, "probe"))
    assert not (folder / "config.json").exists()
    assert why_no_run(folder) == "there is no such bucket"
    assert why_no_run(store.folder()) == "it has no config.json"


def test_a_bucket_that_may_not_be_looked_at_is_not_called_missing(store):
    folder = store.folder()
    store.proxy.disturb(refuse(403), 100)
    assert why_no_run(folder) == "it has no config.json"


@pytest.mark.parametrize(
    "act",
    [
        stored_config,
        lambda folder: Rollbacks(folder, Config()),
        lambda folder: find_runs([folder]),
        lambda folder: keep_sizes(folder, {"training images": 8}),
    ],
    ids=["configuration", "rollbacks", "runs", "sizes"],
)
def test_a_folder_on_a_store_that_does_not_answer_is_read_at_a_later_start(store, act):
    """So the exit code is 1, and not that of a mistake, after which a launcher gives up."""
    folder = dataclasses.replace(store.folder(), deadline_s=0.5)
    store.proxy.disturb(refuse(503), 1000)
    with pytest.raises(StoreError, match=f"{folder}.*: start the same command again when its store answers") as error:
        act(folder)
    assert not error.value.is_lasting


def test_a_rollback_that_cannot_be_recorded_while_a_store_is_down_is_made_at_a_later_start(store):
    folder = dataclasses.replace(store.folder(), deadline_s=0.5)
    rollbacks = Rollbacks(folder, Config())
    store.proxy.disturb(refuse(503), 1000)
    with pytest.raises(StoreError, match="start the same command again when its store answers"):
        rollbacks.add(1, 2)


def test_a_deadline_names_the_endpoint(store):
    folder = dataclasses.replace(store.folder(), deadline_s=0.5)
    store.proxy.disturb(delay(1.0), 5)
    with pytest.raises(StoreError, match=rf"{folder}/a has not answered for 0\.5 s at http://"):
        (folder / "a").read_bytes()


def test_missing_rights_are_named(store):
    store.proxy.disturb(refuse(403), 100)
    assert "the credentials in the environment" in str(check_access(store.folder(), "probe"))


def test_a_probe_leaves_nothing(store):
    folder = store.folder()
    assert check_access(folder, "probe") is None
    assert folder.names() == []


def test_paths_are_parsed(tmp_path):
    assert run_folder("--run-dir", str(tmp_path)) == tmp_path
    pytest.importorskip("gcsfs")
    folder = run_folder("--run-dir", "gs://bucket/some/run/")
    assert (str(folder), folder.name, str(folder.parent)) == ("gs://bucket/some/run", "run", "gs://bucket/some")
    assert str(folder / "config.json") == "gs://bucket/some/run/config.json"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("hdfs://name/run", "give a path, gs:// or s3://"),
        ("GS://bucket/run", "give a path, gs:// or s3://"),
        ("gs://bucket", "name a bucket and a folder"),
        ("gs://bucket/", "name a bucket and a folder"),
        ("s3:///run", "name a bucket and a folder"),
        ("s3://bucket//run", "name a bucket and a folder"),
        ("s3://bucket/../run", "name a bucket and a folder"),
        ("s3://bucket/run?x", "without ? #"),
        ("gs://bucket/läufe", "printable ASCII"),
    ],
)
def test_what_is_no_folder_on_a_store_is_refused(text, part):
    with pytest.raises(ConfigError, match=part.replace("?", r"\?")):
        run_folder("--run-dir", text)


@pytest.mark.parametrize(("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_missing_package_is_named(scheme, package, extra, monkeypatch):
    monkeypatch.setattr(store_module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{package} is missing: pip install 'gnp-scale\[{extra}\]'"):
        run_folder("--run-dir", f"{scheme}://bucket/run")
