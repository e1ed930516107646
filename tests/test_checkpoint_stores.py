"""A store that is full, read-only, slow or failing: saves are retried, reported, and abandoned with one line."""

import asyncio
import contextlib
import os
import subprocess
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from small_disk import mounted

from gnp_scale.checkpoint import Checkpoints, error_output, load_newest, store, writer
from gnp_scale.checkpoint.store import Store, Write
from gnp_scale.config import CheckpointConfig, Config, ConfigError
from gnp_scale.mesh import FSDP, P

CONFIG = Config(checkpoint=CheckpointConfig(num_save_attempts=3))

# If a write fails, Orbax drops coroutines that it has not started, and Python warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _on_a_mesh(set_mesh, monkeypatch):
    set_mesh(fsdp=8)
    monkeypatch.setattr(writer, "FIRST_WAIT_S", 0.1)


def state_of(step):
    """640,000 bytes that do not compress."""
    w_8x20000 = np.random.default_rng(step).standard_normal((8, 20000), np.float32)
    return {"w": jax.device_put(w_8x20000, P(FSDP))}


def restored(run_dir):
    step, state = load_newest(run_dir, state_of(0))
    np.testing.assert_array_equal(state["w"], state_of(step)["w"])
    return step


def save_in_vain(run_dir, step):
    """The last line of the run."""
    with pytest.raises(ConfigError) as error, Checkpoints(run_dir, CONFIG) as checkpoints:
        checkpoints.save(step, state_of(step), None)
    (line,) = str(error.value).splitlines()
    return line


class Shim:
    """Wraps the store: each write is slow, and the first ones fail."""

    def __init__(self, monkeypatch, delay_s, num_failures):
        self.delay_s, self.num_failures, self.num_writes = delay_s, num_failures, 0
        real = Store.write

        def write(store, step, state, metadata):
            self.num_writes += 1
            self.proceed = (
                (lambda: None) if self.num_writes <= num_failures else real(store, step, state, metadata).join
            )
            return Write(self)

        monkeypatch.setattr(Store, "write", write)

    def result(self):
        time.sleep(self.delay_s)
        self.proceed()
        if self.num_writes <= self.num_failures:
            raise OSError("the store does not answer")


def test_a_failing_save_is_tried_again_with_the_state_that_training_has_left(tmp_path, monkeypatch, capsys):
    shim = Shim(monkeypatch, delay_s=0.1, num_failures=2)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        state = state_of(1)
        checkpoints.save(1, state, None)
        state["w"].delete()
    assert shim.num_writes == 3
    assert restored(tmp_path) == 1
    assert capsys.readouterr().err.splitlines() == [
        "the checkpoint of step 1 could not be written (the store does not answer): attempt 2 of 3 in 0.1 s",
        "the checkpoint of step 1 could not be written (the store does not answer): attempt 3 of 3 in 0.2 s",
    ]


def test_training_goes_on_while_a_slow_store_writes(tmp_path, monkeypatch):
    Shim(monkeypatch, delay_s=1.0, num_failures=1)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        start_s = time.monotonic()
        checkpoints.save(1, state_of(1), None)
        checkpoints.observe(2, 1.0)
        assert time.monotonic() - start_s < 0.9
        assert checkpoints.latest_step is None
    assert checkpoints.latest_step == restored(tmp_path) == 1


def test_after_so_many_failures_in_a_row_the_run_ends_and_the_last_good_one_stays(tmp_path, monkeypatch):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, state_of(1), None)
    shim = Shim(monkeypatch, delay_s=0.0, num_failures=99)
    message = save_in_vain(tmp_path, 2)
    assert "step 2 could not be written (the store does not answer), attempt 3 of 3: make " in message
    assert shim.num_writes == 3
    assert restored(tmp_path) == 1


def test_a_newer_state_takes_the_place_of_one_that_was_not_written(tmp_path, monkeypatch):
    """So failures in a row are counted over several saves, and at most one copy of the state exists."""
    Shim(monkeypatch, delay_s=0.0, num_failures=2)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state_of(step), None)
            time.sleep(0.05)
    assert Store(tmp_path).steps() == [4]


def test_saves_in_quick_succession_do_not_use_up_the_attempts(tmp_path, monkeypatch, capsys):
    """After a failure each attempt comes when it was announced, whatever is saved meanwhile."""
    shim = Shim(monkeypatch, delay_s=0.0, num_failures=2)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        start_s, step = time.monotonic(), 0
        while shim.num_writes < 3:
            step += 1
            checkpoints.save(step, state_of(step), None)
            checkpoints.observe(step, 1.0)
        assert time.monotonic() - start_s > 0.1 + 0.2
    assert step > 3
    assert restored(tmp_path) == step


def test_a_save_that_was_committed_and_failed_afterwards_is_not_written_again(tmp_path, monkeypatch):
    real, calls = Store.write, []

    def write(store, step, state, metadata):
        calls.append(step)
        real(store, step, state, metadata).join()
        write_that_failed = Write(Shim(pytest.MonkeyPatch(), 0.0, 0))
        write_that_failed.join()
        write_that_failed.error = OSError("lost after the commit")
        return write_that_failed

    monkeypatch.setattr(Store, "write", write)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(1, state_of(1), None)
    assert calls == [1]


small_disk = contextlib.contextmanager(mounted)


def test_a_full_disk_ends_the_run_and_a_restart_with_room_goes_on(tmp_path, capsys):
    with small_disk(tmp_path / "disk", 2500 * 1024) as mount:
        disk = mount.path
        with Checkpoints(disk, CONFIG) as checkpoints:
            checkpoints.save(1, state_of(1), None)
        filler = disk / "filler"
        filler.write_bytes(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - 300_000))
        assert "No space left" in save_in_vain(disk, 2)
        assert restored(disk) == 1
        assert os.statvfs(disk).f_bavail > 0
        with Checkpoints(disk, CONFIG) as checkpoints:
            checkpoints.save(2, state_of(2), None)
            filler.unlink()
        assert restored(disk) == 2
    assert "No space left" in capsys.readouterr().err


def test_late_writes_of_a_failed_save_print_nothing():
    """TensorStore tells Python of each in a thread of its own, whose errors Python prints."""
    loop, seen = asyncio.new_event_loop(), []
    loop.close()
    for action in (lambda: loop.call_soon_threadsafe(print), lambda: 1 / 0):
        with pytest.raises((RuntimeError, ZeroDivisionError)) as caught:
            action()
        error_output.without_late_writes(seen.append)(SimpleNamespace(exc_value=caught.value))
    (other,) = seen
    assert isinstance(other.exc_value, ZeroDivisionError)


def test_a_folder_that_became_read_only_ends_the_run(tmp_path):
    with small_disk(tmp_path / "disk", 5 * 2**20) as mount:
        disk = mount.path
        with Checkpoints(disk, CONFIG) as checkpoints:
            checkpoints.save(1, state_of(1), None)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "Read-only file system" in save_in_vain(disk, 2)
        assert restored(disk) == 1


def test_a_deletion_does_not_meet_one_that_a_kill_has_left(tmp_path):
    """The name for a deletion may exist already; the folder with this name is deleted too."""
    config = Config(checkpoint=CheckpointConfig(keep_last=1, num_healthy_reports=0, keep_best=0))
    left = tmp_path / "checkpoints" / "1.deleted"
    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(1, state_of(1), None)
        left.mkdir(parents=True)
        (left / "part").touch()
        checkpoints.save(2, state_of(2), None)
        while checkpoints.latest_good_step != 2:
            checkpoints.observe(3, 1.0)
    with Checkpoints(tmp_path, config):
        pass
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]


def test_a_write_does_not_wait_for_the_deletion_of_another(tmp_path, monkeypatch):
    """The deletion of a large checkpoint may take minutes, so it happens in the background."""
    end = threading.Event()
    monkeypatch.setattr(store.shutil, "rmtree", lambda *_, **__: end.wait(60))
    for name in ("7.deleted", "8.orbax-checkpoint-tmp"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save(8, state_of(8), None)
        while checkpoints.latest_step != 8:
            checkpoints.observe(9, 1.0)
        assert not end.is_set()
        end.set()
    assert restored(tmp_path) == 8


def test_a_checkpoint_that_cannot_be_deleted_stays_and_is_told(tmp_path, monkeypatch, capsys):
    config = Config(checkpoint=CheckpointConfig(keep_last=1, num_healthy_reports=0, keep_best=0))

    def refuse(path, target):
        raise PermissionError("not permitted")

    with Checkpoints(tmp_path, config) as checkpoints:
        checkpoints.save(1, state_of(1), None)
        checkpoints.save(2, state_of(2), None)
        with monkeypatch.context() as patch:
            patch.setattr(store.Path, "rename", refuse)
            while checkpoints.latest_good_step != 2:
                checkpoints.observe(3, 1.0)
    assert Store(tmp_path).steps() == [1, 2]
    assert "the checkpoint of step 1 could not be deleted (not permitted): it stays" in capsys.readouterr().err
