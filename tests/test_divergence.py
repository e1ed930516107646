"""Non-finite numbers never reach the state, are detected at their step, and are handled by the policy."""

from dataclasses import replace

import faults
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.checkpoint import fingerprint
from gnp_scale.config import (
    Config,
    ConfigError,
    DataConfig,
    DivergenceConfig,
    GnpConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.data.pipeline import train_batches
from gnp_scale.exit_codes import Exit
from gnp_scale.gnp import StepKind
from gnp_scale.loop import train
from gnp_scale.models import resnet
from gnp_scale.monitoring.reporter import MAX_QUEUED_STEPS, Reporter
from gnp_scale.resilience.divergence import HEALTH, DivergedError, Guard, Health, all_finite
from gnp_scale.run.history import read_history
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

# One step.

SKIP = DivergenceConfig(policy="skip")
VIT = ModelConfig(name="vit_mu", patch_size=2, depth=1)
SMALL = Config(data=DataConfig(batch_size=16, eval_batch_size=16), model=VIT, divergence=SKIP)
STEPS = {
    "moments, average and copy": replace(
        SMALL,
        model=replace(VIT, dtype="bfloat16"),
        optim=OptimConfig(name="adamw", learning_rate=1e-3, clip_norm=1.0),
        train=TrainConfig(ema_decay=0.9, gradient_dtype="bfloat16"),
    ),
    "batch statistics": replace(SMALL, model=ModelConfig(name="resnet18", stem="cifar")),
    "kept direction": replace(
        SMALL, optim=OptimConfig(name="lion", learning_rate=1e-3), gnp=GnpConfig(direction="reused")
    ),
    "groups on replicas": replace(
        SMALL, optim=OptimConfig(name="lamb"), gnp=GnpConfig(blend="decoupled", alpha=1.2, perturb_groups=2)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("moments, average and copy", faults.make_white_nan),
        ("batch statistics", faults.make_white_nan),
        pytest.param("kept direction", faults.make_white_nan, marks=pytest.mark.long),
        ("kept direction", faults.overflow_gradient),
        ("groups on replicas", faults.make_white_nan),
    ],
)
def test_a_step_that_is_not_finite_changes_its_number_and_nothing_else(name, fault, set_mesh, monkeypatch):
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (resnet.BasicBlock, (1, 1)))
    monkeypatch.setattr(resnet, "WIDTH", 8)
    set_mesh(2, 2, 2)
    fault(monkeypatch.setattr)
    task = Task.of(STEPS[name])
    train_step, state = make_train_step(task), task.init_state()

    def after(batch):
        nonlocal state
        before = on_host(state)
        state, metrics = train_step(state, batch, kind=StepKind.FULL)
        return before, on_host(state), jax.device_get(metrics)

    good, bad = batches(task)
    _, before, metrics = after(good)
    assert metrics[HEALTH] == Health.GOOD
    before, skipped, metrics = after(bad)
    assert np.isfinite(metrics["train/loss"]) == (fault is faults.overflow_gradient)
    assert (metrics[HEALTH], metrics["train/skipped_steps"], metrics["optim/update_norm"]) == (Health.SKIPPED, 1, 0)
    assert skipped.step == before.step + 1
    jax.tree.map(np.testing.assert_array_equal, replace(skipped, step=before.step), before)
    _, changed, metrics = after(good)
    assert (metrics[HEALTH], metrics["train/skipped_steps"]) == (Health.GOOD, 1)
    assert all(np.isfinite(np.float64(leaf)).all() for leaf in jax.tree.leaves(changed))
    assert all((a != b).any() for a, b in zip(kernels(changed), kernels(skipped), strict=True))


def on_host(state):
    return jax.tree.map(np.array, state)


def kernels(state):
    return [x for path, x in jax.tree.leaves_with_path(state.params) if "kernel" in jax.tree_util.keystr(path)]


def batches(task):
    """A batch, and one whose last image is white."""
    good = next(train_batches(task.dataset, task.config.data, 0, 0, 1))
    image = np.array(good["image"])
    image[-1] = faults.WHITE
    return good, good | {"image": jax.device_put(image, good["image"].sharding)}


@pytest.mark.slow
def test_parameters_that_an_update_broke_are_told_from_a_step_that_was_skipped(set_mesh):
    set_mesh(2, 2, 2)
    task = Task.of(replace(SMALL, optim=OptimConfig(name="sgd", learning_rate=1e38)))
    train_step, state = make_train_step(task), task.init_state()
    good, _ = batches(task)
    _, metrics = train_step(state, good, kind=StepKind.FULL)
    assert np.isfinite(jax.device_get(metrics["train/loss"]))
    assert jax.device_get(metrics[HEALTH]) == Health.BROKEN


FINE = {"loss_perturbed": 1.0, "grad_norm": 2.0, "grad_norm_perturbed": 3.0, "update_grad_norm": 4.0, "curvature": 5.0}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["loss", *FINE])
def test_both_losses_and_all_gradients_count(name, value):
    """Not the curvature, which is a quotient and affects no update."""
    numbers = {name: jnp.float32(number) for name, number in ({"loss": 0.5} | FINE).items()}
    assert all_finite(numbers["loss"], numbers)
    numbers |= {name: jnp.float32(value)}
    assert all_finite(numbers.pop("loss"), numbers) == (name == "curvature")


# The decision of the host.

POLICIES = {
    "stop": (DivergenceConfig(), [0, 1], 2),
    "skip": (DivergenceConfig("skip", max_skipped_steps=2), [1, 1, 0, 1, 1, 1], 6),
    "skip does not mend parameters": (SKIP, [1, 0, 2], 3),
    "rollback": (DivergenceConfig("rollback"), [0, 0, 1], 3),
}


@pytest.mark.parametrize(("config", "healths", "raised_at"), POLICIES.values(), ids=POLICIES.keys())
def test_a_guard_raises_at_the_step_that_the_policy_does_not_bear(config, healths, raised_at):
    guard = Guard(config)
    for step, health in enumerate(healths, start=1):
        scalars = {"train/accuracy": 0.5, "train/loss": 0.5 if health == Health.GOOD else np.nan}
        if step < raised_at:
            guard.judge(step, Health(health), scalars)
        else:
            with pytest.raises(DivergedError, match=f"step {step}: train/loss is nan") as error:
                guard.judge(step, Health(health), scalars)
            assert error.value.step == step


class Journal:
    """Replaces everything to which a reporter writes, and records it."""

    def __init__(self):
        self.told, self.step_ms = [], 60.0

    def write(self, step, scalars):
        self.told.append((step, dict(scalars)))

    def report(self, step, scalars):
        pass

    def read(self, step):
        return {"perf/step_ms": self.step_ms}

    def observe(self, step, loss):
        self.told.append((step, loss))


@pytest.fixture
def journal():
    return Journal()


def metrics_of(loss, health=Health.GOOD):
    return {"train/loss": jnp.float32(loss), HEALTH: jnp.int32(health)}


def reporter_for(journal, policy="stop", broadcast=lambda value: value):
    return Reporter(journal, journal, journal, Guard(DivergenceConfig(policy)), journal.observe, broadcast)


def test_a_reporter_reads_the_steps_that_are_held_and_of_most_only_how_they_went(journal, monkeypatch):
    """Nothing is read while it is held; for a good step that is not logged, only one scalar is read."""
    read, device_get, metrics = [], jax.device_get, metrics_of(0.5)
    monkeypatch.setattr(jax, "device_get", lambda values: read.append(values) or device_get(values))
    reporter = reporter_for(journal)
    reporter.hold(1, metrics, is_logged=False)
    assert read == []
    reporter.release()
    reporter.release()
    assert read == [metrics[HEALTH]]
    reporter.hold(2, metrics_of(0.25), is_logged=True)
    reporter.release()
    assert journal.told == [(2, {"train/loss": 0.25, "perf/step_ms": 60.0}), (2, 0.25)]


@pytest.mark.parametrize(
    ("step_ms", "num_queued"), [(1.0, MAX_QUEUED_STEPS), (13.0, 7), (100.0, 1), (5000.0, 1)], ids=str
)
def test_as_many_steps_are_queued_as_the_main_process_makes_in_a_moment(step_ms, num_queued, journal, monkeypatch):
    """The depth is 1 until the first logged step; the clock of this process is not used."""
    read = []
    monkeypatch.setattr(Guard, "judge", lambda self, step, health, scalars: read.append(step))
    told_by_main = []
    main = reporter_for(journal, broadcast=lambda value: told_by_main.append(value) or value)
    journal.step_ms = step_ms
    main.hold(1, metrics_of(0.5), is_logged=True)
    main.release()
    reporter = reporter_for(journal, broadcast=lambda value: told_by_main[0])
    journal.step_ms = 40.0
    for step in range(1, 30):
        reporter.hold(step, metrics_of(0.5), is_logged=step % 2 == 0)
        assert step - read[-1] == (step > 1 if step < 4 else min(num_queued, step - 2))
    reporter.release()
    assert read == [1, *range(1, 30)]


@pytest.mark.parametrize("policy", ["stop", "rollback"])
def test_steps_after_one_that_diverged_leave_no_trace(policy, journal):
    """They are dispatched before the host knows of it."""
    reporter = reporter_for(journal, policy)
    journal.step_ms = 10.0
    reporter.hold(5, metrics_of(0.5), is_logged=True)
    reporter.release()
    journal.told.clear()
    reporter.hold(6, metrics_of(0.5), is_logged=False)
    reporter.hold(7, metrics_of(np.inf, Health.SKIPPED), is_logged=False)
    reporter.hold(8, metrics_of(0.5), is_logged=True)
    with pytest.raises(DivergedError, match="step 7: train/loss is inf"):
        reporter.release()
    assert journal.told == [(7, {"train/loss": np.inf})]


MISTAKES = {
    "unused bound": (lambda: DivergenceConfig(max_skipped_steps=3), "set that to skip"),
    "unused rollbacks": (lambda: DivergenceConfig("skip", max_rollbacks=1), "set that to rollback"),
    "unused batches": (lambda: DivergenceConfig(pass_bad_batches=False), "set that to rollback"),
    "no bound": (lambda: DivergenceConfig("skip", max_skipped_steps=0), "must be at least 1"),
}


@pytest.mark.parametrize(("make", "part"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_in_the_section_is_named(make, part):
    with pytest.raises(ConfigError, match=part):
        make()


# Whole runs. Checkpoints are of steps 5, 10, 15 and 16; after step 3 is logged, the queue has its maximum depth.


@pytest.fixture
def deep_queue(monkeypatch):
    """The steps of the tests are slow, so only one would be queued."""
    faults.deepen_queue(monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("deep_queue")
def test_what_was_dispatched_after_the_bad_step_counts_for_nothing(tmp_path, monkeypatch, capsys):
    """Step 11 is known to be bad when step 15 would be saved."""
    faults.poison(monkeypatch.setattr, (11, 0))
    batches = faults.count_batches(monkeypatch)
    assert train(faults.DIGITS, tmp_path) == Exit.DIVERGED
    assert len(batches) == 15
    said = capsys.readouterr().err
    assert "diverged: step 11: train/loss is nan\nthe newest checkpoint is of step 10\n" in said
    assert fingerprint(tmp_path)[0] == 10
    assert max(faults.rows_of(tmp_path)) == 11
    assert read_history(tmp_path).starts[-1].step == 11


@pytest.mark.slow
@pytest.mark.usefixtures("deep_queue")
@pytest.mark.parametrize("row", [0, -1], ids=["first device", "last device"])
def test_stop_ends_the_run_at_the_very_step_and_saves_nothing_of_it(row, tmp_path, monkeypatch, capsys):
    """Also if the run would have saved at this step."""
    faults.poison(monkeypatch.setattr, (10, row))
    assert train(faults.DIGITS, tmp_path) == Exit.DIVERGED
    said = capsys.readouterr().err
    assert "diverged: step 10: train/loss is nan\nthe newest checkpoint is of step 5\n" in said
    assert fingerprint(tmp_path)[0] == 5
    assert max(faults.rows_of(tmp_path)) == 10


@pytest.mark.slow
@pytest.mark.usefixtures("deep_queue")
def test_skip_counts_goes_on_and_resumes_bitwise(tmp_path, monkeypatch, capsys):
    faults.poison(monkeypatch.setattr, (4, 0), (10, -1), (11, 3))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = faults.with_policy("skip", max_skipped_steps=2)
    assert train(config, whole) == Exit.FINISHED
    rows = faults.rows_of(whole)
    counts = [(step, row["train/skipped_steps"]) for step, row in rows.items() if "train/skipped_steps" in row]
    assert counts == [(3, 0), (4, 1), (6, 1), (9, 1), (10, 2), (11, 3), (12, 3), (15, 3)]
    assert "skipped step 10: train/loss is nan" in capsys.readouterr().err
    faults.stop_after(monkeypatch, 10, lambda: train(config, stopped))
    assert train(config, stopped) == Exit.FINISHED
    assert fingerprint(stopped) == fingerprint(whole)
    np.testing.assert_equal(faults.rows_of(stopped), rows)


@pytest.mark.slow
@pytest.mark.usefixtures("deep_queue")
def test_skip_gives_up_after_too_many_steps_in_a_row(tmp_path, monkeypatch, capsys):
    faults.poison(monkeypatch.setattr, (6, 0), (7, 0), (8, 0))
    assert train(faults.with_policy("skip", max_skipped_steps=2), tmp_path) == Exit.DIVERGED
    assert "step 8: train/loss is nan, as in the 2 steps before" in capsys.readouterr().err
