"""Which steps are saved, which are kept, and what is restored."""

import dataclasses
import math
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.checkpoint import Checkpoints, exactness, fingerprint
from gnp_scale.checkpoint.retention import kept
from gnp_scale.checkpoint.store import Store
from gnp_scale.config import CheckpointConfig, Config, ConfigError, TrainConfig
from gnp_scale.mesh import FSDP, TENSOR, P
from gnp_scale.training.state import TrainState


@pytest.fixture
def state(set_mesh):
    set_mesh(fsdp=4, tensor=2)
    w = jax.device_put(jnp.arange(64.0).reshape(8, 8), P(FSDP, TENSOR))
    return TrainState(jnp.int32(0), {"w": w}, {}, (), None, None, None)


def config(**values):
    return Config(checkpoint=CheckpointConfig(**values), train=TrainConfig(log_every_steps=5))


def run(run_dir, settings, state, num_steps, scores=None):
    """Saves when due in `num_steps` steps; returns the steps that remain at the end."""
    scores = scores or {}
    run_dir.mkdir(exist_ok=True)
    with Checkpoints(run_dir, settings) as checkpoints:
        for step in range(1, num_steps + 1):
            metrics = {settings.checkpoint.best_metric: scores[step]} if step in scores else None
            if checkpoints.is_due(step, metrics):
                checkpoints.save(step, dataclasses.replace(state, step=jnp.int32(step)), metrics)
    return Store(run_dir).steps()


SAVED = {
    "by step": (config(every_steps=4), {}, [4, 8]),
    "and the best": (config(every_steps=5), {3: 0.5, 4: 0.9, 6: 0.7, 7: 0.95}, [3, 4, 5, 7, 10]),
    "and the best, lowest": (config(every_steps=9, best_metric="eval/loss"), {3: 0.5, 4: 0.9, 6: 0.2}, [3, 6, 9]),
    "no best": (config(every_steps=5, keep_best=0), {3: 0.5}, [5, 10]),
    "by time only": (config(every_steps=None, every_minutes=1e-9), {}, [5, 10]),
}


@pytest.mark.parametrize(("settings", "scores", "saved"), SAVED.values(), ids=SAVED.keys())
def test_what_is_saved(settings, scores, saved, state, tmp_path):
    keeping_all = dataclasses.replace(settings, checkpoint=dataclasses.replace(settings.checkpoint, keep_last=99))
    assert run(tmp_path, keeping_all, state, 10, scores) == saved


def test_what_is_expendable_is_deleted(state, tmp_path):
    assert run(tmp_path, config(every_steps=1, keep_last=1), state, 5) == [1, 5]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir() if path.name.isdecimal()) == ["1", "5"]


SCORES = {3: 0.5, 4: 0.9, 6: 0.7}
KEPT = {
    "good and newest, and the next": ({"keep_last": 2}, range(1, 9), {1, 2, 3, 4}, {}, {3, 4, 5, 7, 8}),
    "none is good yet": ({"keep_last": 1}, range(1, 9), set(), {}, {1, 8}),
    "all are good": ({"keep_last": 1}, range(1, 9), set(range(1, 9)), {}, {8}),
    "milestones": ({"keep_last": 1, "keep_every_steps": 3}, range(1, 9), set(range(1, 9)), {}, {3, 6, 8}),
    "best": ({"keep_last": 1}, range(3, 9), set(range(3, 9)), SCORES, {4, 8}),
    "two best": ({"keep_last": 1, "keep_best": 2}, range(3, 9), set(range(3, 9)), SCORES, {4, 6, 8}),
    "lowest loss": ({"keep_last": 1, "best_metric": "eval/loss"}, range(3, 9), set(range(3, 9)), SCORES, {3, 8}),
    "a score of none": ({"keep_last": 1}, range(3, 9), set(range(3, 9)), {4: math.nan, 5: 0.1}, {5, 8}),
    "no best": ({"keep_last": 1, "keep_best": 0}, range(3, 9), set(range(3, 9)), SCORES, {8}),
}


@pytest.mark.parametrize(("settings", "steps", "good", "scores", "expected"), KEPT.values(), ids=KEPT.keys())
def test_what_is_kept(settings, steps, good, scores, expected):
    settings = CheckpointConfig(**settings)
    assert kept(steps, good, {s: {settings.best_metric: value} for s, value in scores.items()}, settings) == expected


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
    with Checkpoints(tmp_path, config(every_steps=1)) as checkpoints:
        step, restored = checkpoints.restore(state)
    assert step == 1
    assert jax.tree.map(jax.typeof, restored) == jax.tree.map(jax.typeof, state)
    np.testing.assert_array_equal(restored.params["w"], state.params["w"])


def test_a_fingerprint_tells_one_bit_and_one_type(state, tmp_path):
    state = dataclasses.replace(state, kept=jnp.int32(0))
    w_8x8 = np.array(state.params["w"])
    w_8x8[3, 3] = np.nextafter(w_8x8[3, 3], np.float32(0))
    changed = dataclasses.replace(state, params={"w": jax.device_put(w_8x8, state.params["w"].sharding)})
    wider = dataclasses.replace(state, kept=jnp.uint32(0))
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
        run(run_dir, config(every_steps=1), TrainState(jnp.int32(0), {"w": w}, {}, (), None, None, None), 1)
        hashes.add(fingerprint(run_dir))
    assert len(hashes) == 1


def test_resuming_says_whether_it_is_exact(state, tmp_path, monkeypatch):
    run(tmp_path, config(every_steps=1), state, 1)
    with Checkpoints(tmp_path, config()) as checkpoints:
        checkpoints.restore(state)
        assert checkpoints.exactness() == "on the same mesh: the run is bitwise the one that was not interrupted"
        monkeypatch.setattr(exactness, "_version", lambda name: "0.0.1" if name == "scipy" else metadata.version(name))
        assert "other versions of scipy: numbers, and examples, may differ" in checkpoints.exactness()


def test_no_checkpoint_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="holds no checkpoints"):
        fingerprint(tmp_path)
