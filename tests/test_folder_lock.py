"""A run folder on a file system has one run, which ends when the folder is moved or removed."""

import contextlib
import os
import shutil
import threading

import jax.numpy as jnp
import pytest

from gnp_scale import recipe
from gnp_scale.checkpoint import Checkpoints, writer
from gnp_scale.checkpoint.store import Store
from gnp_scale.commands import sweeps
from gnp_scale.config import Config, ConfigError, TrainConfig
from gnp_scale.exit_codes import Exit
from gnp_scale.run import folder_lock
from gnp_scale.run.run_dir import claimed, stored_config
from gnp_scale.sweeps import queue


def test_a_run_folder_has_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "_WAIT_S", 0.0)
    with (
        claimed(tmp_path, Config()),
        pytest.raises(ConfigError, match=r"is in use by process \d+ on"),
        claimed(tmp_path, Config()),
    ):
        pass
    with claimed(tmp_path, Config()):
        pass


def test_a_start_that_waited_for_the_folder_does_not_take_it_from_another_run(tmp_path, monkeypatch):
    """The other run begins after the folder was looked at, and ends before the lock is taken."""
    other, take = Config(train=TrainConfig(seed=1)), folder_lock.wait_for_lock

    def begin_another_run(file, wait_s):
        (tmp_path / "config.json").write_text(recipe.to_json(other))
        return take(file, wait_s)

    monkeypatch.setattr(folder_lock, "wait_for_lock", begin_another_run)
    with pytest.raises(ConfigError, match="holds a run with another configuration"), claimed(tmp_path, Config()):
        pass
    assert stored_config(tmp_path) == other


def make_file(path):
    path.touch()


def make_dangling_link(path):
    path.symlink_to("nowhere")


@pytest.mark.parametrize("disturb", [make_file, make_dangling_link])
def test_a_run_that_could_save_nothing_is_refused_at_its_start(disturb, tmp_path):
    """Its first save would be the first to notice."""
    disturb(tmp_path / "checkpoints")
    with (
        pytest.raises(ConfigError, match="checkpoints is no folder that can be written to"),
        claimed(tmp_path, Config()),
    ):
        pass
    (tmp_path / "checkpoints").unlink()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoints").symlink_to("elsewhere")
    with claimed(tmp_path, Config()):
        pass


def move(folder):
    folder.rename(folder.with_name("moved"))


def replace_by_another(folder):
    move(folder)
    (folder / "checkpoints").mkdir(parents=True)


@pytest.mark.parametrize("disturb", [move, shutil.rmtree, replace_by_another])
def test_a_run_whose_folder_is_moved_or_removed_is_told(disturb, tmp_path, monkeypatch):
    """Else its checkpoints would be written to one place, and its metrics to another or to none."""
    monkeypatch.setattr(folder_lock, "LOOK_S", 0.05)
    reasons, is_told = [], threading.Event()
    with claimed(tmp_path / "run", Config(), lambda reason: (reasons.append(reason), is_told.set())):
        disturb(tmp_path / "run")
        assert is_told.wait(30)
    (reason,) = reasons
    assert reason.startswith(f"{tmp_path / 'run'} was moved or removed while its run was training: to go on, give ")


def fail(*_):
    raise OSError("stale file handle")


def delete_lock(folder):
    (folder / "lock").unlink()


@pytest.mark.parametrize(
    ("disturb", "compare"),
    [(delete_lock, os.path.samestat), (lambda folder: None, fail), (lambda folder: None, lambda *_: False)],
    ids=["a lock that is deleted by hand", "a file system that fails", "a folder with another number"],
)
def test_what_is_no_loss_ends_no_run(disturb, compare, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "LOOK_S", 0.01)
    looks, has_looked = [], threading.Event()

    def look(*stats):
        looks.append(None)
        if len(looks) == 5:
            has_looked.set()
        return compare(*stats)

    reasons = []
    with claimed(tmp_path, Config(), reasons.append):
        disturb(tmp_path)
        monkeypatch.setattr(folder_lock.os.path, "samestat", look)
        assert has_looked.wait(30)
    assert reasons == []


def test_a_point_that_ended_without_a_record_is_not_finished(tmp_path, monkeypatch, capsys):
    class Ended:
        codes = {"a": Exit.FINISHED}

        def __init__(self, *_):
            pass

        def run(self):
            return True

    class Points:
        def arguments(self, name, folder):
            return [name]

    monkeypatch.setattr(queue, "Queue", Ended)
    monkeypatch.setattr(sweeps, "_report", lambda folder, states: None)
    assert sweeps._train(tmp_path, Points(), ["a"], 1) == Exit.FAILED
    assert f"a: it ended, and its folder has no record of that: bring {tmp_path / 'a'} back" in capsys.readouterr().err


def test_a_run_that_ends_before_its_folder_is_looked_at_is_told_too(tmp_path):
    """Else it would say that no step is lost, with its last checkpoint in a new folder of the old name."""
    with claimed(tmp_path / "run", Config()) as files:
        files.check_place()
        move(tmp_path / "run")
        with pytest.raises(ConfigError, match="run was moved or removed while its run was training: to go on, give "):
            files.check_place()
        replaced = tmp_path / "run" / "checkpoints"
        replaced.mkdir(parents=True)
        with pytest.raises(ConfigError, match="run was moved or removed"):
            files.check_place()


def test_a_save_makes_no_folder_of_a_run_again(tmp_path):
    store = Store(tmp_path / "run")
    with pytest.raises(FileNotFoundError):
        store.prepare(1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("made_again", [False, True])
def test_a_save_into_a_moved_folder_says_so_and_not_that_the_disk_is_full(
    made_again, tmp_path, set_mesh, monkeypatch, capsys
):
    """The advice for a full disk, to start the same command again, would begin a new run."""
    set_mesh()
    monkeypatch.setattr(writer, "FIRST_WAIT_S", 0.01)
    run = tmp_path / "run"
    with claimed(run, Config()) as files, contextlib.ExitStack() as stack:
        checkpoints = stack.enter_context(Checkpoints(run, Config(), files.probe))
        (replace_by_another if made_again else move)(run)
        checkpoints.save(1, {"step": jnp.int32(1)}, None)
        with pytest.raises(
            ConfigError, match="run was moved or removed while its run was training: to go on, give its"
        ):
            stack.close()
    assert "was moved or removed while its run was training: to go on, give its name of now" in capsys.readouterr().err
    assert list(run.glob("checkpoints/*")) == []


def test_a_folder_that_is_put_back_gets_the_checkpoint(tmp_path, set_mesh, monkeypatch):
    set_mesh()
    monkeypatch.setattr(writer, "FIRST_WAIT_S", 0.01)
    run = tmp_path / "run"
    with claimed(run, Config()) as files, Checkpoints(run, Config(), files.probe) as checkpoints:
        move(run)
        checkpoints.save(1, {"step": jnp.int32(1)}, None)
        run.with_name("moved").rename(run)
    assert Store(run).steps() == [1]
