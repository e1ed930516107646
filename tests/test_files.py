"""Files of a run folder survive full and failing disks: existing data is not lost, and nothing raises."""

import errno
import os
import resource
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from faults import DIGITS
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from gnp_scale import loop, steps
from gnp_scale.config import Config, ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.monitoring.metrics import MetricWriter, read_metrics
from gnp_scale.resilience import rollback
from gnp_scale.resilience.rollback import Rollbacks
from gnp_scale.run import files, run_dir
from gnp_scale.run.files import RecordFile, append_line, replace_file
from gnp_scale.run.history import read_history
from gnp_scale.run.layout import GOODPUT_FILE, METRICS_FILE
from gnp_scale.run.recorder import Recorder
from gnp_scale.run.run_dir import claimed
from gnp_scale.run.stages import Stages

pytestmark = pytest.mark.usefixtures("unoptimized")

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG, errno.ESTALE)


def fail_with(number):
    def fail(*arguments, **options):
        raise OSError(number, os.strerror(number))

    return fail


def rows(first, last):
    return [{"step": step, "train/loss": 1 / step} for step in range(first, last + 1)]


def log(writer, first, last):
    for row in rows(first, last):
        writer.write(row["step"], {"train/loss": row["train/loss"]})


def points(run_dir):
    """The steps of the losses in all event files, as TensorBoard reads them."""
    found = []
    for path in sorted(run_dir.glob("events*")):
        for event in EventFileLoader(str(path)).Load():
            found += [event.step for value in event.summary.value if value.tag == "train/loss"]
    return found


def test_a_disk_that_is_full_for_a_while_costs_no_row_and_no_point(disk, capsys):
    """Several times as many as TensorBoard's own writer would queue before it blocks."""
    with MetricWriter(disk.path, is_writer=True, start_step=0) as writer:
        log(writer, 1, 50)
        disk.fill()
        log(writer, 51, 2500)
        assert read_metrics(disk.path)[:50] == rows(1, 50)
        writer.sync()
        disk.free()
        log(writer, 2501, 2501)
        assert read_metrics(disk.path) == rows(1, 2501)
        log(writer, 2502, 2502)
    assert read_metrics(disk.path) == rows(1, 2502)
    assert points(disk.path) == list(range(1, 2503))
    lines = capsys.readouterr().err.splitlines()
    for name in (METRICS_FILE, "events.out"):
        first, second = (line for line in lines if name in line)
        assert "cannot be written (No space left on device)" in first
        assert "can be written again: nothing is lost" in second
    assert len(lines) == 4


def test_a_disk_that_stays_full_is_told_at_the_end(disk, capsys):
    with MetricWriter(disk.path, is_writer=True, start_step=0) as writer:
        log(writer, 1, 5)
        disk.fill()
        log(writer, 6, 1000)
    kept = len(read_metrics(disk.path))
    assert f"{1000 - kept} records of {disk.path / METRICS_FILE} are lost" in capsys.readouterr().err
    disk.free()
    with MetricWriter(disk.path, is_writer=True, start_step=5) as writer:
        log(writer, 6, 10)
    assert read_metrics(disk.path) == rows(1, 10)


def test_a_start_on_a_full_disk_loses_nothing_that_is_there(disk):
    """Removing later steps needs no free space, and a new row waits for space."""
    with MetricWriter(disk.path, is_writer=True, start_step=0) as writer:
        log(writer, 1, 500)
    disk.fill()
    with MetricWriter(disk.path, is_writer=True, start_step=400) as writer:
        assert read_metrics(disk.path) == rows(1, 400)
        log(writer, 401, 1000)
        disk.free()
    assert read_metrics(disk.path) == rows(1, 1000)


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", ["pwrite", "ftruncate", "open", "fsync"])
def test_an_error_of_any_call_costs_no_record(tmp_path, monkeypatch, capsys, number, call):
    file = RecordFile(tmp_path / "file")
    file.append(b"first\n")
    file.sync()
    with monkeypatch.context() as patch:
        patch.setattr(files.os, call, fail_with(number))
        file.append(b"second\n")
        file.amend(b"2nd\n")
        file.append(b"third\n")
        file.sync()
    file.append(b"fourth\n")
    file.close()
    assert (tmp_path / "file").read_bytes() == b"first\n2nd\nthird\nfourth\n"
    assert len(capsys.readouterr().err.splitlines()) == (0 if call == "open" else 2)


def test_what_the_disk_has_lost_at_a_sync_is_written_again(tmp_path, monkeypatch):
    """Network file systems accept data, and report only later that there was no space for it."""
    path = tmp_path / "file"
    file = RecordFile(path)
    file.append(b"first\n")
    file.sync()
    file.append(b"second\n")

    def lose(number):
        os.pwrite(number, b"\0" * 7, 6)
        fail_with(errno.ENOSPC)()

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", lose)
        file.sync()
        assert path.read_bytes() == b"first\n" + b"\0" * 7
    file.append(b"third\n")
    assert path.read_bytes() == b"first\nsecond\nthird\n"


def test_a_file_that_was_made_anew_during_an_outage_gets_no_hole(tmp_path, monkeypatch):
    path = tmp_path / "file"
    file = RecordFile(path)
    file.append(b"first\n")
    file.sync()
    file.append(b"second\n")
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "pwrite", fail_with(errno.EIO))
        file.append(b"third\n")
    path.unlink()
    file.append(b"fourth\n")
    assert path.read_bytes() == b"first\nsecond\nthird\nfourth\n"


def test_short_writes_leave_whole_lines(tmp_path, monkeypatch):
    pwrite, write = os.pwrite, os.write
    monkeypatch.setattr(files.os, "pwrite", lambda file, data, offset: pwrite(file, data[:3], offset))
    monkeypatch.setattr(files.os, "write", lambda file, data: write(file, data[:3]))
    with MetricWriter(tmp_path, is_writer=True, start_step=0) as writer:
        log(writer, 1, 3)
    assert read_metrics(tmp_path) == rows(1, 3)
    append_line(tmp_path / "lines", b"first")
    append_line(tmp_path / "lines", b"second")
    assert (tmp_path / "lines").read_bytes() == b"first\nsecond\n"


def test_a_line_does_not_join_one_that_was_cut_short(tmp_path, monkeypatch):
    path, write = tmp_path / "lines", os.write

    def cut(file, data):
        return write(file, data[:4]) if data.startswith(b"first") else fail_with(errno.ENOSPC)()

    monkeypatch.setattr(files.os, "write", cut)
    with pytest.raises(OSError, match="No space left"):
        append_line(path, b"first line")
    monkeypatch.undo()
    append_line(path, b"second")
    assert path.read_bytes() == b"firs\nsecond\n"


def test_a_limit_on_the_size_of_files_kills_nobody(tmp_path, capsys):
    """Its signal, SIGXFSZ, ends a process that does not ignore it."""
    with MetricWriter(tmp_path, is_writer=True, start_step=0) as writer:
        log(writer, 1, 1)
        writer.write(2, {f"x/{n}": 0.0 for n in range(10_000)})
        size = (tmp_path / METRICS_FILE).stat().st_size
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
        try:
            log(writer, 3, 10)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        log(writer, 11, 11)
    assert read_metrics(tmp_path)[2:] == rows(3, 11)
    assert "File too large" in capsys.readouterr().err


def test_records_that_cannot_be_written_are_kept_within_bounds(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(files, "MAX_RECORDS", 10)
    file = RecordFile(tmp_path / "file")
    for n in range(3):
        file.append(b"%d\n" % n)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "pwrite", fail_with(errno.ENOSPC))
        for n in range(3, 20):
            file.append(b"%d\n" % n)
    file.append(b"20\n")
    kept = [int(line) for line in (tmp_path / "file").read_text().split()]
    assert kept == [0, 1, 2, *range(11, 21)]
    assert "8 records are lost" in capsys.readouterr().err


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_a_replacement_that_fails_leaves_the_old_file_alone(tmp_path, monkeypatch, call):
    path = tmp_path / "file"
    replace_file(path, b"old")
    owner = files.os if call == "fsync" else files.Path
    monkeypatch.setattr(owner, call, fail_with(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new")
    monkeypatch.undo()
    assert [(each.name, each.read_bytes()) for each in tmp_path.iterdir()] == [("file", b"old")]


def test_writers_that_replace_one_file_at_once_do_not_disturb_each_other(tmp_path):
    """Two sweeps write one table, and two commands the index of one data set: without a lock."""
    path = tmp_path / "file"
    contents = [bytes([number]) * 50_000 for number in range(4)]
    replace_file(path, contents[0])
    with ThreadPoolExecutor(len(contents) + 1) as pool:
        writers = [pool.submit(lambda data: [replace_file(path, data) for _ in range(30)], data) for data in contents]
        reader = pool.submit(lambda: {path.read_bytes() for _ in range(300)})
        for writer in writers:
            writer.result()
    assert reader.result() <= set(contents)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_synced_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "sync", fail_with(errno.EINVAL))
    replace_file(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_the_same_configuration_starts_on_a_full_disk_and_another_is_one_line(disk):
    config = Config()
    with claimed(disk.path, config):
        pass
    disk.fill()
    with claimed(disk.path, config):
        pass
    changed = replace(config, checkpoint=replace(config.checkpoint, every_steps=77))
    before = (disk.path / run_dir.CONFIG_FILE).read_bytes()
    with pytest.raises(ConfigError, match="make it writable, with room"), claimed(disk.path, changed):
        pass
    assert (disk.path / run_dir.CONFIG_FILE).read_bytes() == before
    assert not list(disk.path.glob("*.new"))


def test_a_rollback_that_cannot_be_recorded_is_one_line(tmp_path, monkeypatch):
    rollbacks = Rollbacks(tmp_path, Config())
    monkeypatch.setattr(rollback, "replace_file", fail_with(errno.ENOSPC))
    with pytest.raises(ConfigError, match=r"rollbacks\.json cannot be written \(No space left on device\)"):
        rollbacks.add(5, 7)


def test_the_record_of_time_has_a_gap_and_tells_it_once(disk, capsys):
    recorder = Recorder(disk.path, Stages(), is_writer=True)
    line = recorder._line()
    recorder._append(line)
    disk.fill()
    for _ in range(100):
        recorder._append(line)
    disk.free()
    recorder._append(line | {"step": 7})
    (start,) = read_history(disk.path).starts
    assert start.step == 7
    first, second = capsys.readouterr().err.splitlines()
    assert "goodput.jsonl cannot be written (No space left on device)" in first
    assert "can be written again" in second


@pytest.mark.parametrize("name", [GOODPUT_FILE, METRICS_FILE])
def test_a_record_that_cannot_be_read_does_not_keep_a_run_from_starting(tmp_path, capsys, name):
    (tmp_path / name).symlink_to(tmp_path / name)
    Recorder(tmp_path, Stages(), is_writer=True)
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_whose_disk_is_full_for_a_while_ends_as_if_nothing_were(disk, tmp_path, monkeypatch, capsys):
    config = replace(DIGITS, checkpoint=replace(DIGITS.checkpoint, every_steps=None))
    config = replace(config, train=replace(config.train, log_every_steps=1))
    assert loop.train(config, tmp_path / "whole") == Exit.FINISHED
    run_dir, report = disk.path / "run", steps.Reporter.report

    def report_and_fill(self, step, scalars):
        if step == 4:
            disk.fill()
        if step == 12 and "train/loss" in scalars:
            disk.free()
        report(self, step, scalars)

    monkeypatch.setattr(steps.Reporter, "report", report_and_fill)
    assert loop.train(config, run_dir) == Exit.FINISHED

    def numbers(folder):
        return [{k: v for k, v in row.items() if not k.startswith("perf/")} for row in read_metrics(folder)]

    assert numbers(run_dir) == numbers(tmp_path / "whole")
    assert len(numbers(run_dir)) == config.train.num_steps
