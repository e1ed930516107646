"""Checkpoints on object stores: whole or absent, set aside without a rename, and safe from a store that fails."""

import gc
from dataclasses import replace

import jax
import numpy as np
import pytest
from store_proxy import cut, drop, refuse

from gnp_scale.checkpoint import Checkpoints, bucket, fingerprint, load_newest, writer
from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.checks import PassingError
from gnp_scale.config import CheckpointConfig, Config, ConfigError
from gnp_scale.mesh import FSDP, P
from gnp_scale.run.status import _newest_checkpoint

CONFIG = Config(checkpoint=CheckpointConfig(keep_last=2, num_healthy_reports=1, num_save_attempts=3))

# If a read or a write fails, Orbax drops coroutines that it has not started, and Python warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _on_a_mesh(set_mesh, monkeypatch):
    set_mesh(fsdp=8)
    monkeypatch.setattr(writer, "FIRST_WAIT_S", 0.1)
    yield
    gc.collect()


def state_of(step):
    """640,000 bytes that do not compress."""
    w_8x20000 = np.random.default_rng(step).standard_normal((8, 20000), np.float32)
    return {"w": jax.device_put(w_8x20000, P(FSDP))}


def save(folder, *steps):
    with Checkpoints(folder, CONFIG) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), None)


def restored(folder):
    """The step from which a start resumes, after a look at its state."""
    with Checkpoints(folder, CONFIG) as checkpoints:
        found = checkpoints.restore(state_of(0))
    assert found is not None
    np.testing.assert_array_equal(found[1]["w"], state_of(found[0])["w"])
    return found[0]


def names(folder):
    """What is there, with `#` in the place of tokens."""
    return sorted({".".join([step, "#", *rest]) for step, _, *rest in map(parts, (folder / "checkpoints").names())})


def parts(name):
    return name.removesuffix("/").split(".")


def data(folder, step):
    """The objects of the values of a step."""
    path = open_store(folder)._path(step) / "state" / "ocdbt.process_0" / "d"
    return [path / name for name in path.names()]


def test_what_is_saved_is_restored_and_old_steps_are_deleted(store):
    folder = store.folder()
    save(folder, 1, 2, 3, 4)
    assert names(folder) == sorted(f"{step}.#{mark}" for step in (1, 3, 4) for mark in ("", ".committed"))
    assert _newest_checkpoint(folder) == 4
    assert restored(folder) == 4
    assert fingerprint(folder, 3) != fingerprint(folder)


def test_the_bits_are_those_of_a_local_folder(store, tmp_path):
    folder = store.folder()
    save(folder, 1)
    save(tmp_path, 1)
    assert fingerprint(folder) == fingerprint(tmp_path)


def test_a_stored_checkpoint_gets_the_scores_of_a_later_evaluation(store):
    """They count: the best checkpoint is kept."""
    folder = store.folder()
    save(folder, 1, 2)
    scores = {"eval/loss": 1.0, "eval/top1": 0.5, "eval/top5": 0.75}
    with Checkpoints(folder, CONFIG) as checkpoints:
        checkpoints.save(2, state_of(2), scores)
    with Checkpoints(folder, CONFIG) as checkpoints:
        assert checkpoints.latest_scores == scores
    save(folder, 3, 4)
    assert {name[0] for name in names(folder)} == {"1", "2", "3", "4"}


@pytest.mark.slow
def test_a_good_checkpoint_is_marked_and_kept(store):
    folder = store.folder()
    with Checkpoints(folder, CONFIG) as checkpoints:
        checkpoints.save(1, state_of(1), None)
        while checkpoints.latest_step != 1:
            checkpoints.observe(1, 1.0)
        checkpoints.observe(2, 1.0)
        for step in (3, 4, 5, 6):
            checkpoints.save(step, state_of(step), None)
    assert open_store(folder).good_steps() == [1]
    assert open_store(folder).steps() == [1, 3, 5, 6]
    with Checkpoints(folder, CONFIG) as checkpoints:
        step, _ = checkpoints.roll_back(state_of(0))
    assert step == 1
    assert [name for name in names(folder) if "rolled" in name] == [f"{n}.#.rolled-back" for n in (3, 5, 6)]
    save(folder, 5)  # The run comes to the same steps again.
    assert restored(folder) == 5


def truncate(folder):
    (path,) = data(folder, 2)
    path.write_bytes(path.read_bytes()[:1000])


def flip(folder):
    (path,) = data(folder, 2)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def lose_values(folder):
    (path,) = data(folder, 2)
    path.unlink()


def lose_all(folder):
    open_store(folder)._path(2).rmtree()


def lose_the_last_object(folder):
    (open_store(folder)._path(2) / "commit_success.txt").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "damage"),
    [("gs", truncate), ("s3", flip), ("gs", lose_values), ("s3", lose_all), ("gs", lose_the_last_object)],
    indirect=["store"],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(store, damage, capfd):
    folder = store.folder()
    save(folder, 1, 2)
    damage(folder)
    assert restored(folder) == 1
    assert "the checkpoint of step 2 is damaged (" in capfd.readouterr().err
    assert "2.#.damaged" in names(folder)
    assert restored(folder) == 1
    save(folder, 2)
    assert restored(folder) == 2
    assert "2.#.damaged" in names(folder), "it is never deleted"


def test_a_write_that_was_killed_is_no_checkpoint_and_is_cleared_away(store):
    folder = store.folder()
    save(folder, 1, 2)
    committed = next(name for name in (folder / "checkpoints").names() if name.startswith("2.") and "com" in name)
    (folder / "checkpoints" / committed).unlink()
    assert open_store(folder).steps() == [1]
    with pytest.raises(ConfigError, match="has no checkpoint of step 2"):
        fingerprint(folder, 2)
    assert restored(folder) == 1
    assert names(folder) == ["1.#", "1.#.committed"]


@pytest.mark.parametrize("num_objects", [0, 3, 100])
def test_a_deletion_that_was_killed_is_finished(store, num_objects):
    folder = store.folder()
    save(folder, 1, 2)
    path = open_store(folder)._path(2)
    (folder / "checkpoints" / f"{path.name}.deleted").write_bytes(b"")
    for name in path.names()[:num_objects]:
        (path / name).unlink(missing_ok=True)
    assert open_store(folder).steps() == [1]
    assert restored(folder) == 1
    assert names(folder) == ["1.#", "1.#.committed"]


def test_a_store_that_refuses_writes_for_a_while_loses_no_checkpoint(store, capfd):
    folder = store.folder()
    save(folder, 1)
    store.proxy.disturb(refuse(403), 2, "checkpoints/probe")
    save(folder, 2)
    assert "the checkpoint of step 2 could not be written" in capfd.readouterr().err
    assert restored(folder) == 2


def test_a_store_that_refuses_all_writes_ends_the_run_with_one_line(store):
    folder = store.folder()
    save(folder, 1)
    store.proxy.disturb(refuse(403), 10_000, store.write_method)
    with pytest.raises(ConfigError, match=f"attempt 3 of 3: make {folder}/checkpoints writable") as error:
        save(folder, 2)
    assert len(str(error.value).splitlines()) == 1
    store.proxy.calm()
    assert restored(folder) == 1


@pytest.mark.parametrize("fault", [drop, refuse(503)], ids=["dropped", "503"])
def test_a_store_that_does_not_answer_ends_the_run_so_that_a_launcher_starts_it_again(store, fault, monkeypatch):
    monkeypatch.setattr(bucket, "_PATIENCE_S", 0.5)
    folder = store.folder()
    save(folder, 1)
    store.proxy.disturb(fault, 10_000, store.write_method)
    with pytest.raises(PassingError, match="attempt 3 of 3: start the same command again"):
        save(folder, 2)
    store.proxy.calm()
    assert restored(folder) == 1


@pytest.mark.parametrize("act", ["list", "set aside"])
def test_a_store_that_does_not_answer_at_a_rollback_lets_a_launcher_start_again(store, act, monkeypatch):
    folder = store.folder()
    save(folder, 1, 2)
    with Checkpoints(folder, CONFIG) as checkpoints:
        checkpoints._store.folder = replace(checkpoints._store.folder, deadline_s=0.5)
        store.proxy.disturb(refuse(503), 10_000)
        with pytest.raises(PassingError, match="start the same command again"):
            checkpoints._stored() if act == "list" else checkpoints._set_aside(2, "rolled-back")
        store.proxy.calm()
    assert restored(folder) == 2


@pytest.mark.slow
@pytest.mark.parametrize("fault", [refuse(503), cut], ids=["503", "cut"])
def test_disturbed_requests_of_a_save_and_a_restore_leave_no_trace(store, fault):
    folder = store.folder()
    parts = ("/d/", "manifest.ocdbt", "_METADATA", "committed")
    for part in parts:
        store.proxy.disturb(fault, 1, part)
    save(folder, 1, 2)
    for part in parts[:3]:
        store.proxy.disturb(fault, 2, part)
    assert load_newest(folder, state_of(0))[0] == 2
    assert restored(folder) == 2


def test_a_save_and_a_restore_take_few_requests(store):
    """The numbers of docs/stores.md."""
    folder = store.folder()
    save(folder, 1)
    store.proxy.calm()
    save(folder, 2)
    num_to_save = len(store.proxy.lines)
    store.proxy.calm()
    restored(folder)
    num_to_restore = len(store.proxy.lines)
    store.proxy.calm()
    open_store(folder).good_steps()
    assert len(store.proxy.lines) == 1
    print(f"requests on {store.scheme}: {num_to_save} to save, {num_to_restore} to restore")
    assert num_to_save < 160
    assert num_to_restore < 250
