"""The files of a run on a store that grow: written here, copied there, and continued on another machine."""

import json

import pytest
from store_proxy import refuse

from gnp_scale.config import Config, ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.monitoring.metrics import MetricWriter, read_metrics
from gnp_scale.run import lease, mirror
from gnp_scale.run.files import NEW_SUFFIX
from gnp_scale.run.history import read_history
from gnp_scale.run.mirror import growing_files
from gnp_scale.run.recorder import append_exit
from gnp_scale.run.run_dir import check_reach, claimed, stored_config


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror.tempfile, "tempdir", str(tmp_path))


def log(folder, start, steps):
    """A start that resumes at `start`, logs `steps`, publishes, and is killed."""
    with growing_files(folder, 0, is_writer=True) as files, MetricWriter(files.folder, True, start) as writer:
        for step in steps:
            writer.write(step, {"train/loss": float(step)})
        writer.sync()
        files.publish()
        lines = read_metrics(folder)
    return [int(row["step"]) for row in lines]


def test_lines_are_on_the_store_when_published_and_each_step_has_one(store):
    folder = store.folder()
    assert log(folder, 0, [1, 2, 3, 4]) == [1, 2, 3, 4]
    assert log(folder, 2, [3]) == [1, 2, 3]
    assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3]


def test_the_next_start_writes_its_events_into_a_file_that_sorts_after_the_others(store):
    folder = store.folder()
    log(folder, 0, [1])
    (first,) = [name for name in folder.names() if name.startswith("events")]
    content = (folder / first).read_bytes()
    log(folder, 1, [2])
    events = [name for name in folder.names() if name.startswith("events")]
    assert events[0] == first
    assert len(events) == 2
    assert (folder / first).read_bytes() == content


def test_damaged_lines_stay_on_the_store(store):
    folder = store.folder()
    log(folder, 0, [1, 2])
    (folder / "metrics.jsonl").write_bytes((folder / "metrics.jsonl").read_bytes() + b'{"step": 3, "tr')
    log(folder, 2, [])
    (folder / "metrics.jsonl").write_bytes(b"\0\0\0\n" + (folder / "metrics.jsonl").read_bytes())
    assert log(folder, 2, [3]) == [1, 2, 3]
    assert (folder / "metrics.jsonl.damaged").read_bytes().splitlines() == [b'{"step": 3, "tr', b"\0\0\0"]


def test_a_file_that_is_being_replaced_is_not_copied(store):
    """It has another name each time, and nobody would remove it from the store."""
    folder = store.folder()
    with growing_files(folder, 0, is_writer=True) as files:
        (files.folder / f"metrics.jsonl.0123{NEW_SUFFIX}").write_bytes(b"")
        files.publish()
    assert folder.names() == []


def test_half_a_line_is_not_copied(store):
    folder = store.folder()
    with growing_files(folder, 0, is_writer=True) as files:
        (files.folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n{"st')
        files.publish()
        assert (folder / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'


def test_only_what_has_changed_is_copied(store):
    folder = store.folder()
    with growing_files(folder, 0, is_writer=True) as files:
        (files.folder / "metrics.jsonl").write_bytes(b"1\n")
        files.publish()
        store.proxy.calm()
        files.publish()
        assert store.proxy.lines == []


def test_an_outage_is_told_once_and_nothing_is_lost(store, capsys):
    folder = store.folder()
    with growing_files(folder, 0, is_writer=True) as files, MetricWriter(files.folder, True, 0) as writer:
        store.proxy.disturb(refuse(403), 10_000, store.write_method)
        for step in (1, 2, 3):
            writer.write(step, {"train/loss": 0.5})
            files.publish()
        store.proxy.calm()
        files.publish()
        assert [row["step"] for row in read_metrics(folder)] == [1, 2, 3]
    said = capsys.readouterr().err
    assert said.count("cannot be written (") == 1
    assert said.count("can be written again: nothing is lost") == 1


def test_what_cannot_be_copied_at_the_end_stays_on_this_machine(store, capsys):
    folder = store.folder()
    with growing_files(folder, 0, is_writer=True) as files:
        (files.folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n')
        store.proxy.disturb(refuse(403), 10_000)
    assert f"they are in {files.folder}" in capsys.readouterr().err
    assert (files.folder / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
    store.proxy.calm()
    with growing_files(folder, 0, is_writer=True) as files:
        pass
    assert not files.folder.exists(), "without an outage nothing stays"


def test_a_process_that_is_not_the_main_one_leaves_its_stacks_alone(store):
    folder = store.folder()
    log(folder, 0, [1])
    (folder / "stacks-1.txt").write_text("earlier\n")
    with growing_files(folder, 1, is_writer=False) as files:
        assert [file.name for file in files.folder.iterdir()] == ["stacks-1.txt"]
        with (files.folder / "stacks-1.txt").open("a") as stacks:
            stacks.write("later\n")
    assert (folder / "stacks-1.txt").read_text() == "earlier\nlater\n"


def test_a_folder_is_claimed_described_and_freed(store):
    folder = store.folder()
    check_reach(folder)
    with claimed(folder, Config()) as files:
        append_exit(files.folder, Exit.HUNG)
        files.leave()
    assert stored_config(folder) == Config()
    assert json.loads((folder / "goodput.jsonl").read_bytes())["exit"] == 76
    assert read_history(folder).starts == ()
    assert folder.names() == ["config.json", "goodput.jsonl", "lock.1"]
    with claimed(folder, Config()):
        pass


def test_a_folder_of_another_configuration_is_left_alone(store):
    folder = store.folder()
    with claimed(folder, Config()):
        pass
    other = Config(train=Config().train.__class__(seed=7))
    with pytest.raises(ConfigError, match=r"train\.seed 0 -> 7"), claimed(folder, other):
        pass
    assert stored_config(folder) == Config()


def test_a_start_that_has_lost_the_folder_writes_nothing_more(store, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_S", 0.1)
    folder = store.folder()
    reasons = []
    with claimed(folder, Config(), reasons.append) as files:
        (folder / "lock.2").write_text("{}")
        while not reasons:
            pass
        (files.folder / "metrics.jsonl").write_bytes(b'{"step": 1}\n')
    assert "metrics.jsonl" not in folder.names()
    assert "lock.2" in folder.names()
