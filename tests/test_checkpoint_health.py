"""The health gate: a checkpoint is good only if training continued soundly after it, and then it is not rotated out."""

import math

import jax
import jax.numpy as jnp
import pytest

from gnp_scale.checkpoint import Checkpoints
from gnp_scale.checkpoint.health import HealthGate
from gnp_scale.checkpoint.store import Store
from gnp_scale.config import CheckpointConfig, Config

NAN = math.nan

PASSES = {
    "after two sound losses": ([1, 1, 1, 1], {2: 4}),
    "not by the loss of its own step": ([1, 1, 1], {}),
    "not with a loss that is not finite": ([1, 1, NAN, NAN, math.inf, NAN], {}),
    "not with a spike": ([1, 1, 1, 6, 1], {}),
    "once a spike is over": ([1, 1, 6, 1, 1], {2: 5}),
    "at a rise below the factor": ([1, 1, 4, 4], {2: 4}),
    "on a level that lasts": ([1, 1, 9, 9, 9, 9], {2: 6}),
}


@pytest.mark.parametrize(("losses", "passed"), PASSES.values(), ids=PASSES.keys())
def test_when_a_checkpoint_of_step_2_passes(losses, passed):
    gate = HealthGate(num_reports=2, spike_factor=5.0)
    found = {}
    for step, loss in enumerate(losses, start=1):
        found |= dict.fromkeys(gate.observe(step, loss), step)
        if step == 2:
            gate.add(2)
    assert found == passed


CONFIG = Config(checkpoint=CheckpointConfig(keep_last=2))


@pytest.fixture
def state(set_mesh):
    set_mesh(fsdp=8)
    return {"w": jnp.arange(8.0)}


def train(checkpoints, state, steps, loss):
    """Reports a loss for each step and saves after it."""
    for step in steps:
        checkpoints.observe(step, loss)
        checkpoints.save(step, state, None)


def test_parameters_that_are_not_finite_do_not_rotate_out_good_ones(state, tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        train(checkpoints, state, range(1, 6), 1.0)
        assert checkpoints.latest_good_step == 2
        train(checkpoints, state, range(6, 12), NAN)
        assert checkpoints.latest_good_step == 2
    assert Store(tmp_path).good_steps() == [1, 2]
    assert Store(tmp_path).steps() == [1, 2, 3, 10, 11]


def test_checkpoints_become_good_though_saves_come_faster_than_reports_pass_them(state, tmp_path):
    config = Config(checkpoint=CheckpointConfig(keep_last=1, num_healthy_reports=3))
    with Checkpoints(tmp_path, config) as checkpoints:
        train(checkpoints, state, range(1, 11), 1.0)
        assert checkpoints.latest_good_step >= 4


def test_good_ones_stay_good_after_a_restart_and_the_others_may_become_so(state, tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        train(checkpoints, state, range(1, 5), 1.0)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        good = checkpoints.latest_good_step
        assert good == Store(tmp_path).good_steps()[-1] < 4
        checkpoints.restore(state)
        for step in (5, 6):
            checkpoints.observe(step, 1.0)
        assert checkpoints.latest_good_step == 4


def test_rolling_back_goes_to_the_newest_good_one_and_sets_the_others_aside(state, tmp_path, capsys):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        train(checkpoints, state, range(1, 6), 1.0)
        train(checkpoints, jax.tree.map(jnp.zeros_like, state), (6, 7), NAN)
        step, restored = checkpoints.roll_back(state)
        assert step == checkpoints.latest_step == 2
        assert (restored["w"] == state["w"]).all()
        # The same step numbers come again.
        train(checkpoints, state, range(3, 8), 1.0)
    assert Store(tmp_path).steps()[-1] == 7
    assert "the checkpoint of step 7 was set aside as 7.rolled-back" in capsys.readouterr().err
    assert (tmp_path / "checkpoints" / "7.rolled-back").is_dir()


def test_a_rollback_sets_aside_one_that_could_not_be_deleted(state, tmp_path, monkeypatch):
    """Otherwise it would be taken for the checkpoint of the same step of the new attempt."""
    delete, refused = Store._delete_behind, []

    def refuse_once(self, path):
        if path.name == "7" and not refused:
            refused.append(path)
            raise OSError("I/O error")
        delete(self, path)

    monkeypatch.setattr(Store, "_delete_behind", refuse_once)
    config = Config(checkpoint=CheckpointConfig(keep_last=1))
    with Checkpoints(tmp_path, config) as checkpoints:
        train(checkpoints, state, range(1, 7), 1.0)
        train(checkpoints, state, range(7, 10), NAN)
        step, _ = checkpoints.roll_back(state)
        assert refused
        assert step < 7
        checkpoints.save(7, {"w": -state["w"]}, None)
    assert (tmp_path / "checkpoints" / "7.rolled-back").is_dir()
    restored = Store(tmp_path).read(7, jax.eval_shape(lambda: state))
    assert restored["w"].tolist() == (-state["w"]).tolist()


def test_rolling_back_where_none_is_good_leaves_room_to_start_anew(state, tmp_path):
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        train(checkpoints, state, (1, 2), NAN)
        assert checkpoints.roll_back(state) is None
        train(checkpoints, state, (1, 2, 3), 1.0)
    assert Store(tmp_path).steps()[-1] == 3
