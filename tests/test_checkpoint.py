"""Which steps are saved, which are kept, and what a failed write does."""

import dataclasses
import os
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale import checkpoint
from gnp_scale.checkpoint import Checkpoints, fingerprint
from gnp_scale.config import CheckpointConfig, Config, ConfigError, TrainConfig
from gnp_scale.mesh import FSDP, TENSOR, P
from gnp_scale.state import TrainState


@pytest.fixture
def state(set_mesh):
    set_mesh(fsdp=4, tensor=2)
    w = jax.device_put(jnp.arange(64.0).reshape(8, 8), P(FSDP, TENSOR))
    return TrainState(jnp.int32(0), {"w": w}, {}, (), None, None)


def config(**values):
    return Config(checkpoint=CheckpointConfig(**values), train=TrainConfig(log_every_steps=5))


def run(run_dir, settings, state, num_steps, scores=None):
    """Saves what is due over `num_steps` steps; returns the steps that are left at the end."""
    scores = scores or {}
    with Checkpoints(run_dir, settings) as checkpoints:
        for step in range(1, num_steps + 1):
            metrics = {settings.checkpoint.best_metric: scores[step]} if step in scores else None
            if checkpoints.is_due(step, metrics):
                checkpoints.save(step, state, metrics)
    return sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir())


KEPT = {
    "newest": (config(every_steps=2, keep_last=2), {}, [8, 10]),
    "milestones": (config(every_steps=2, keep_last=1, keep_every_steps=4), {}, [4, 8, 10]),
    "best": (config(every_steps=5, keep_last=1), {3: 0.5, 4: 0.9, 6: 0.7}, [4, 10]),
    "best is lowest": (config(every_steps=5, keep_last=1, best_metric="eval/loss"), {3: 0.5, 4: 0.9, 6: 0.2}, [6, 10]),
    "no best": (config(every_steps=5, keep_last=1, keep_best=0), {3: 0.5}, [10]),
    "by time only": (config(every_steps=None, every_minutes=1e-9, keep_last=9), {}, [5, 10]),
}


@pytest.mark.parametrize(("settings", "scores", "kept"), KEPT.values(), ids=KEPT.keys())
def test_what_is_kept(settings, scores, kept, state, tmp_path):
    assert run(tmp_path, settings, state, 10, scores) == kept


def test_the_time_cadence_waits_its_time(state, tmp_path):
    with Checkpoints(tmp_path, config(every_steps=None, every_minutes=0.002)) as checkpoints:
        assert not checkpoints.is_due(5, None)
        time.sleep(0.13)
        assert not checkpoints.is_due(6, None)
        assert checkpoints.is_due(10, None)


def test_the_best_of_an_earlier_start_still_counts(state, tmp_path):
    run(tmp_path, config(every_steps=5), state, 5, {4: 0.9})
    with Checkpoints(tmp_path, config(every_steps=100)) as checkpoints:
        assert not checkpoints.is_due(6, {"eval/top1": 0.8})
        assert checkpoints.is_due(7, {"eval/top1": 0.95})


def test_values_types_and_shardings_come_back(state, tmp_path):
    run(tmp_path, config(every_steps=1), state, 1)
    with Checkpoints(tmp_path, config()) as checkpoints:
        restored = checkpoints.restore(state)
    assert jax.tree.map(jax.typeof, restored) == jax.tree.map(jax.typeof, state)
    np.testing.assert_array_equal(restored.params["w"], state.params["w"])


SAVE_ONTO_A_FILE = """
import shutil, sys
from pathlib import Path
import jax.numpy as jnp
from gnp_scale.checkpoint import Checkpoints
from gnp_scale.config import Config
from gnp_scale.state import TrainState

run_dir = Path(sys.argv[1])
with Checkpoints(run_dir, Config()) as checkpoints:
    shutil.rmtree(run_dir / "checkpoints")
    (run_dir / "checkpoints").write_text("in the way")
    checkpoints.save(1, TrainState(jnp.int32(0), {"w": jnp.ones(8)}, {}, (), None, None), None)
print("saved")
"""


def test_a_write_that_fails_is_an_error(tmp_path):
    """A file in place of the folder stands for a store that broke: root may write into read-only folders.

    In a process of its own, since a write that Orbax gives up leaves coroutines behind that warn whenever they go.
    """
    command = [sys.executable, "-c", SAVE_ONTO_A_FILE, str(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "saved" not in done.stdout
    assert str(tmp_path / "checkpoints") in done.stderr


def test_a_fingerprint_tells_one_bit_and_one_type(state, tmp_path):
    w_8x8 = np.array(state.params["w"])
    w_8x8[3, 3] = np.nextafter(w_8x8[3, 3], np.float32(0))
    changed = dataclasses.replace(state, params={"w": jax.device_put(w_8x8, state.params["w"].sharding)})
    wider = dataclasses.replace(state, step=jnp.uint32(0))
    hashes = set()
    for name, value in {"a": state, "same": state, "changed": changed, "wider": wider}.items():
        run(tmp_path / name, config(every_steps=1), value, 1)
        hashes.add(fingerprint(tmp_path / name)[1])
    assert len(hashes) == 3


def test_a_fingerprint_does_not_depend_on_the_mesh(set_mesh, tmp_path):
    hashes = set()
    for shape in ((1, 8, 1), (1, 4, 2), (2, 2, 2)):
        set_mesh(*shape)
        w = jax.device_put(jnp.arange(64.0).reshape(8, 8), P(FSDP, TENSOR))
        run_dir = tmp_path / "x".join(map(str, shape))
        run(run_dir, config(every_steps=1), TrainState(jnp.int32(0), {"w": w}, {}, (), None, None), 1)
        hashes.add(fingerprint(run_dir))
    assert len(hashes) == 1


def test_resuming_says_whether_it_is_exact(state, tmp_path, monkeypatch):
    run(tmp_path, config(every_steps=1), state, 1)
    with Checkpoints(tmp_path, config()) as checkpoints:
        assert "bitwise" in checkpoints.exactness()
        monkeypatch.setattr(checkpoint, "_versions", lambda: {"jax": "0.0.1", "a library of later": "1"})
        assert "other versions of jax, a library of later" in checkpoints.exactness()


def test_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        fingerprint(tmp_path)
