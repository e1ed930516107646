"""Only intact checkpoints are used: every kind of damage is found, reported and set aside, and nothing is lost."""

import gc
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.checkpoint import Checkpoints, fingerprint, load_newest, stored_shapes
from gnp_scale.checkpoint import restore as restore_module
from gnp_scale.checkpoint.checksums import checksum_of_step, checksums, mismatched
from gnp_scale.checkpoint.store import Store
from gnp_scale.config import CheckpointConfig, Config, ConfigError, OptimConfig
from gnp_scale.mesh import FSDP, TENSOR, P

# If a read fails, Orbax drops coroutines that it has not started, and Python warns.
pytestmark = [
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

CONFIG = Config(checkpoint=CheckpointConfig(keep_last=9))


@pytest.fixture(autouse=True)
def _collected():
    """Makes Python warn here, and not in later tests."""
    yield
    gc.collect()


def state_of(step):
    """A state that depends on its step; its bits are random, so that compression hides no damaged byte."""
    w_64x64 = np.random.default_rng(step).standard_normal((64, 64), np.float32)
    return {"step": jnp.int32(step), "params": {"w": jax.device_put(w_64x64, P(FSDP, TENSOR))}}


def save(run_dir, *steps):
    with jax.set_mesh(jax.make_mesh((1, 4, 2), ("replica", FSDP, TENSOR))), Checkpoints(run_dir, CONFIG) as checkpoints:
        for step in steps:
            checkpoints.save(step, state_of(step), None)
    return run_dir


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run that saved steps 1, 2 and 3."""
    return save(tmp_path_factory.mktemp("saved"), 1, 2, 3)


@pytest.fixture
def run_dir(saved, tmp_path, set_mesh):
    """A copy of the folder to damage, and a mesh for restoring."""
    set_mesh(fsdp=4, tensor=2)
    return shutil.copytree(saved, tmp_path / "run")


def files(run_dir, step):
    return sorted(path for path in (run_dir / "checkpoints" / str(step)).rglob("*") if path.is_file())


def restore(run_dir):
    with Checkpoints(run_dir, CONFIG) as checkpoints:
        return checkpoints.restore(state_of(0))


def largest(run_dir, step):
    return max(files(run_dir, step), key=lambda path: path.stat().st_size)


def truncate(run_dir, step):
    file = largest(run_dir, step)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip_in_values(run_dir, step):
    file = largest(run_dir, step)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def lose_a_shard(run_dir, step):
    largest(run_dir, step).unlink()


def lose_the_marker(run_dir, step):
    (run_dir / "checkpoints" / str(step) / "commit_success.txt").unlink()


def lose_all_but_the_folder(run_dir, step):
    shutil.rmtree(run_dir / "checkpoints" / str(step))
    (run_dir / "checkpoints" / str(step)).mkdir()


def change_the_description(run_dir, step):
    file = run_dir / "checkpoints" / str(step) / "_CHECKPOINT_METADATA"
    content = json.loads(file.read_text())
    content["custom_metadata"]["config"]["train"]["num_steps"] += 1
    file.write_text(json.dumps(content))


def copy_another_step(run_dir, step):
    """All bytes are right, but the optimizer would be at another step than the run, with another learning rate."""
    shutil.rmtree(run_dir / "checkpoints" / str(step))
    shutil.copytree(run_dir / "checkpoints" / str(step - 2), run_dir / "checkpoints" / str(step))


DAMAGE = (
    truncate,
    flip_in_values,
    lose_a_shard,
    lose_the_marker,
    lose_all_but_the_folder,
    change_the_description,
    copy_another_step,
)


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_set_aside_and_the_one_before_is_used(damage, run_dir, capsys):
    damage(run_dir, 3)
    step, state = restore(run_dir)
    assert step == 2
    np.testing.assert_array_equal(state["params"]["w"], state_of(2)["params"]["w"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("the checkpoint of step 3 is damaged (")
    assert line.endswith("set aside as 3.damaged")
    assert (run_dir / "checkpoints" / "3.damaged").is_dir()
    assert Store(run_dir).steps() == [1, 2]


@pytest.mark.slow
def test_any_flipped_bit_is_noticed_or_harmless(run_dir):
    """One bit in each tenth of every file: the restored state is bitwise a saved one, or there is none."""
    seed = random.Random(0)
    found = set()
    for name in [path.relative_to(run_dir) for path in files(run_dir, 3)]:
        whole = (run_dir / name).read_bytes()
        for place in range(0, len(whole), len(whole) // 10 + 1):
            content = bytearray(whole)
            content[place] ^= 1 << seed.randrange(8)
            (run_dir / name).write_bytes(content)
            step, state = load_newest(run_dir, state_of(0))
            np.testing.assert_array_equal(state["params"]["w"], state_of(step)["params"]["w"])
            assert state["step"] == step
            found.add(step)
        (run_dir / name).write_bytes(whole)
    assert found == {2, 3}


def test_several_damaged_ones_are_each_named(run_dir, capsys):
    truncate(run_dir, 3)
    lose_a_shard(run_dir, 2)
    step, _ = restore(run_dir)
    assert step == 1
    assert [line.split(" is")[0] for line in capsys.readouterr().err.splitlines()] == [
        "the checkpoint of step 2",
        "the checkpoint of step 3",
    ]


def test_a_second_one_of_the_same_step_is_set_aside_beside_the_first(run_dir):
    (run_dir / "checkpoints" / "3.damaged").mkdir()
    truncate(run_dir, 3)
    restore(run_dir)
    assert (run_dir / "checkpoints" / "3.damaged.2").is_dir()


def test_where_none_is_whole_nothing_is_changed(run_dir):
    for step in (1, 2, 3):
        truncate(run_dir, step)
    before = sorted(path.name for path in (run_dir / "checkpoints").iterdir())
    with pytest.raises(ConfigError, match="no checkpoint") as error:
        restore(run_dir)
    assert "\n" not in str(error.value)
    assert all(f"step {step}: " in str(error.value) for step in (1, 2, 3))
    assert sorted(path.name for path in (run_dir / "checkpoints").iterdir()) == before


def test_a_half_written_step_is_no_checkpoint(run_dir):
    """The folder of a killed run has another name until its last file exists."""
    shutil.move(run_dir / "checkpoints" / "3", run_dir / "checkpoints" / "3.orbax-checkpoint-tmp")
    lose_in = run_dir / "checkpoints" / "3.orbax-checkpoint-tmp"
    (lose_in / "commit_success.txt").unlink()
    assert restore(run_dir)[0] == 2
    assert not lose_in.exists()


def test_another_process_takes_steps_and_scores_from_the_main_one(run_dir, monkeypatch):
    """Its file system may show fewer steps, or an unreadable file: then it would keep and read other steps."""
    answers, given = [[[2, {"eval/top1": 0.5}], [3, None]], [1, 2], [1, 2]], []
    monkeypatch.setattr(restore_module, "is_main_process", lambda: False)
    monkeypatch.setattr(restore_module.consensus, "broadcast", lambda value: given.append(value) or answers.pop(0))
    truncate(run_dir, 2)
    assert restore_module.stored_scores(Store(run_dir), [1, 2, 3]) == {2: {"eval/top1": 0.5}}
    assert load_newest(run_dir, state_of(0))[0] == 1, "3 is not among the steps, and 2 is damaged"
    assert given == [[], [], []]


@pytest.mark.parametrize("lost", ["state/manifest.ocdbt", "state/_METADATA", "state"])
def test_a_lost_description_is_one_line_although_shapes_are_read_first(lost, run_dir, capsys):
    path = run_dir / "checkpoints" / "3" / lost
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert stored_shapes(run_dir) == {"w": state_of(2)["params"]["w"].shape}
    assert load_newest(run_dir, state_of(0))[0] == 2
    assert len([line for line in capsys.readouterr().err.splitlines() if "step 3 is damaged" in line]) == 1
    with pytest.raises(ConfigError, match=r"step 3 is damaged \(.*\): name another --step, of \[1, 2\]$"):
        fingerprint(run_dir)


def test_a_run_may_delete_what_is_read(run_dir, tmp_path, monkeypatch, capsys):
    """Its checkpoints of steps 2 and 3 go, and one of step 4 comes, while others begin to read the newest."""
    later = save(tmp_path, 4)
    read, reads = Store.metadata, []

    def metadata(store, step):
        reads.append(step)
        if reads == [3]:
            for old in ("2", "3"):
                shutil.move(run_dir / "checkpoints" / old, run_dir / f"{old} is deleted")
            shutil.copytree(later / "checkpoints" / "4", run_dir / "checkpoints" / "4")
        return read(store, step)

    monkeypatch.setattr(Store, "metadata", metadata)
    assert load_newest(run_dir, state_of(0))[0] == 4
    assert "damaged" not in capsys.readouterr().err
    for old in ("2", "3"):
        shutil.move(run_dir / f"{old} is deleted", run_dir / "checkpoints" / old)
    shutil.rmtree(run_dir / "checkpoints" / "4")
    reads.clear()
    assert fingerprint(run_dir)[0] == 4
    reads.clear()
    for old in ("2", "3"):
        shutil.move(run_dir / f"{old} is deleted", run_dir / "checkpoints" / old)
    shutil.rmtree(run_dir / "checkpoints" / "4")
    with pytest.raises(ConfigError, match=r"has no checkpoint of step 3: name another --step, of \[1, 4\]"):
        fingerprint(run_dir, 3)


def test_reading_skips_damage_and_changes_nothing(run_dir, capsys):
    flip_in_values(run_dir, 3)
    assert load_newest(run_dir, state_of(0))[0] == 2
    assert "step 3 is damaged" in capsys.readouterr().err
    assert Store(run_dir).steps() == [1, 2, 3]
    with pytest.raises(ConfigError, match="step 3 is damaged"):
        fingerprint(run_dir)


def test_a_checkpoint_of_another_run_is_refused(run_dir):
    other = Config(optim=OptimConfig(learning_rate=0.5))
    with (
        Checkpoints(run_dir, other) as checkpoints,
        pytest.raises(ConfigError, match=r"another configuration \(optim.learning_rate 0.1 -> 0.5\)"),
    ):
        checkpoints.restore(state_of(0))
    assert Store(run_dir).steps() == [1, 2, 3]


MESHES = ((1, 8, 1), (1, 4, 2), (2, 2, 2), (8, 1, 1))
TYPES = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.int8, jnp.bool_)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: dtype.__name__)
def test_checksums_do_not_depend_on_the_mesh(dtype, set_mesh):
    x_8x16 = (np.random.default_rng(0).standard_normal((8, 16)) * 9).astype(dtype)
    found = set()
    for sizes in MESHES:
        set_mesh(*sizes)
        found.add(checksums({"x": jax.device_put(x_8x16, P(FSDP, TENSOR))})["x"])
    assert len(found) == 1


def test_the_checksum_of_a_step_needs_no_device():
    for step in (0, 1, 255, 256, 123_456, 2**31 - 1):
        assert checksum_of_step(step) == checksums({"step": jnp.int32(step)})["step"]


def test_checksums_tell_one_bit_a_swap_and_a_missing_array():
    x_4x3 = np.arange(12, dtype=np.float32).reshape(4, 3)
    expected = checksums({"x": x_4x3, "y": np.float32(0)})
    for bit in range(32):
        changed = x_4x3.copy()
        changed.view(np.uint32)[2, 1] ^= np.uint32(1 << bit)
        assert mismatched({"x": changed, "y": np.float32(0)}, expected) == ["x"]
    assert mismatched({"x": x_4x3[::-1], "y": np.float32(-0.0)}, expected) == ["x", "y"]
    assert mismatched({"x": x_4x3}, expected) == ["y"]
