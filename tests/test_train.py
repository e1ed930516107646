"""Whole runs: they learn, stop and resume bitwise, write the promised files, and mistakes give one line."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest

from gnp_scale import loop
from gnp_scale.checkpoint import fingerprint
from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    GnpConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.evaluation.existing import evaluate_run
from gnp_scale.exit_codes import Exit
from gnp_scale.loop import train
from gnp_scale.monitoring.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("unoptimized")

VIT = ModelConfig(name="vit_mu", patch_size=2, dropout=0.1, drop_path=0.1)
# 1,437 training images: an epoch ends in the middle of the batch of step 23, so stops are inside an epoch.
BASE = Config(
    data=DataConfig(batch_size=64, eval_batch_size=120, crop_padding=1, mixup=0.2),
    model=VIT,
    optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=5, clip_norm=5.0),
    mesh=MeshConfig(fsdp=4, tensor=2),
    train=TrainConfig(num_steps=30, log_every_steps=3, eval_every_steps=10, ema_decay=0.9),
    checkpoint=CheckpointConfig(every_steps=10),
)
RESNET = dataclasses.replace(
    BASE,
    model=ModelConfig(name="resnet18", stem="cifar", num_bn_groups=2),
    optim=OptimConfig(name="sgd", learning_rate=0.05, l2_in_loss=1e-3),
    mesh=MeshConfig(replica=2, fsdp=2, tensor=2),
    train=TrainConfig(num_steps=6, log_every_steps=2, eval_every_steps=4),
)
WARMUP = dataclasses.replace(BASE, gnp=GnpConfig(alpha_schedule="warmup", warmup_steps=12))

REUSED = dataclasses.replace(BASE, gnp=GnpConfig(direction="reused", reuse_every=4, alpha=0.7))
GROUPED = dataclasses.replace(
    BASE,
    gnp=GnpConfig(perturb_groups=2, blend="decoupled", alpha=1.2, gate="bernoulli"),
    mesh=MeshConfig(replica=2, fsdp=2, tensor=2),
    train=TrainConfig(num_steps=12, log_every_steps=2, eval_every_steps=6, accumulate_steps=2),
)
FINE_TUNED = dataclasses.replace(
    BASE,
    model=dataclasses.replace(VIT, depth=2),
    optim=OptimConfig(
        name="muon",
        learning_rate=0.01,
        warmup_steps=3,
        moment_dtype="bfloat16",
        agc=0.1,
        layer_decay=0.7,
        frozen=("embed/*", "blocks/00/*"),
    ),
    train=TrainConfig(num_steps=6, log_every_steps=2, eval_every_steps=6, ema_decay=0.9, loss="bce"),
)


def stop_after(monkeypatch, step, batch=0):
    """Makes the next run stop after `step`, or inside the evaluation that follows, as a signal would."""
    monkeypatch.setattr(loop.StopRequest, "reached", lambda self, *reached: (*reached, 0)[:2] >= (step, batch))


def without_times(rows):
    return [{name: value for name, value in row.items() if not name.startswith("perf/")} for row in rows]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The folder of a run that was not stopped, made once for each configuration."""

    @functools.cache
    def make(config):
        run_dir = tmp_path_factory.mktemp("whole")
        assert train(config, run_dir) == Exit.FINISHED
        return run_dir

    return make


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "stop"),
    [
        pytest.param(BASE, 7, marks=pytest.mark.long),
        pytest.param(BASE, 20, marks=pytest.mark.long),
        (WARMUP, 1),
        pytest.param(RESNET, 3, marks=pytest.mark.long),
        pytest.param(REUSED, 6, marks=pytest.mark.long),
        pytest.param(GROUPED, 5, marks=pytest.mark.long),
        (FINE_TUNED, 3),
    ],
    ids=["mid-epoch", "at-save", "off-step", "resnet", "kept direction", "groups", "fine-tuned"],
)
def test_a_stopped_run_ends_bitwise_like_one_that_was_not(config, stop, whole_run, tmp_path, monkeypatch):
    whole, stopped = whole_run(config), tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        assert train(config, stopped) == Exit.PREEMPTED
    assert fingerprint(stopped)[0] == stop
    assert train(config, stopped) == Exit.FINISHED
    assert fingerprint(stopped) == fingerprint(whole)
    assert without_times(read_metrics(stopped)) == without_times(read_metrics(whole))


@pytest.mark.slow
def test_an_evaluation_that_a_stop_ended_is_made_by_the_next_start(tmp_path, monkeypatch, capsys):
    """Also where that start is stopped in it again, and after the last step. Its scores are stored as any others."""
    config = dataclasses.replace(
        BASE,
        data=DataConfig(
            "synthetic", batch_size=16, eval_batch_size=16, synthetic_num_examples=180, synthetic_image_size=8
        ),
        model=dataclasses.replace(VIT, depth=1, width=16, num_heads=2),
        train=TrainConfig(num_steps=6, log_every_steps=4, eval_every_steps=2),
        checkpoint=CheckpointConfig(every_steps=None, keep_best=3),
    )
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert train(config, whole) == Exit.FINISHED
    # Before the second of the three batches of an evaluation; at its begin, on resuming; and so on.
    for step, batch in [(2, 3), (2, 1), (4, 0), (6, 4), (6, 1)]:
        with monkeypatch.context() as patch:
            stop_after(patch, step, batch)
            assert train(config, stopped) == Exit.PREEMPTED
        assert fingerprint(stopped)[0] == step
        assert max((row["step"] for row in read_metrics(stopped) if "eval/top1" in row), default=0) == step - 2
    assert train(config, stopped) == Exit.FINISHED
    assert "evaluating step 6, which was saved without its evaluation" in capsys.readouterr().err
    # Scores that another program has written are not used.
    (stopped / "checkpoints" / "6" / "scores.json").write_bytes(b'{"eval/top1": 1.0}')
    assert train(config, stopped) == Exit.FINISHED
    assert fingerprint(stopped) == fingerprint(whole)
    rows = without_times(read_metrics(stopped))
    assert rows == without_times(read_metrics(whole))
    scores = {row["step"]: {name: row[name] for name in row if name.startswith("eval/")} for row in rows}
    assert {step: open_store(stopped).scores(step) for step in (2, 4, 6)} == scores


@pytest.fixture(scope="module")
def finished(whole_run):
    return whole_run(BASE)


@pytest.mark.slow
def test_a_run_whose_checkpoints_are_gone_says_that_it_begins_again(finished, tmp_path, monkeypatch, capsys):
    run_dir = shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoints"))
    stop_after(monkeypatch, 1)
    assert train(BASE, run_dir) == Exit.PREEMPTED
    last = BASE.train.num_steps
    said = f"beginning at step 0 again: {run_dir} has no checkpoint, although step {last} was made"
    assert said in capsys.readouterr().err.splitlines()


@pytest.mark.slow
def test_a_run_that_diverges_ends_at_that_step_with_its_own_code(tmp_path):
    """The first step is not a logged one."""
    wild = dataclasses.replace(BASE, optim=OptimConfig(name="sgd", learning_rate=1e20))
    assert train(wild, tmp_path) == Exit.DIVERGED
    (row,) = read_metrics(tmp_path)
    assert row["step"] == 1
    assert not np.isfinite(row["optim/param_norm"])


@pytest.mark.slow
def test_metrics_have_the_documented_names_at_every_logged_step(finished):
    rows = {row["step"]: row for row in read_metrics(finished)}
    assert sorted(rows) == sorted({*range(3, 31, 3), 10, 20, 30})
    assert set(rows[30]) == {
        "step",
        *(f"train/{name}" for name in ("loss", "loss_perturbed", "accuracy")),
        *(f"gnp/{name}" for name in ("grad_norm", "grad_norm_perturbed", "update_grad_norm", "cosine", "curvature")),
        *(f"gnp/{name}" for name in ("r", "alpha", "lambda", "on")),
        *(f"optim/{name}" for name in ("learning_rate", "update_norm", "param_norm")),
        *(f"perf/{name}" for name in ("images_per_s", "step_ms", "data_wait_ms", "goodput")),
        *(f"eval/{name}" for name in ("loss", "top1", "top5")),
    }
    assert all(np.isfinite(value) for row in rows.values() for value in row.values())


@pytest.mark.slow
def test_a_finished_run_is_evaluated_as_it_was_and_not_trained_again(finished):
    before = fingerprint(finished)
    assert train(BASE, finished) == Exit.FINISHED
    assert fingerprint(finished) == before
    step, scores = evaluate_run(BASE, finished)
    assert step == 30
    assert scores == {name: value for name, value in read_metrics(finished)[-1].items() if name.startswith("eval/")}


@pytest.mark.slow
def test_another_mesh_goes_on_with_the_same_examples(finished):
    elsewhere = dataclasses.replace(BASE, mesh=MeshConfig(replica=2, fsdp=2, tensor=1))
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        evaluate_run(elsewhere, finished)
    _, here = evaluate_run(BASE, finished)
    _, there = evaluate_run(dataclasses.replace(BASE, mesh=MeshConfig(replica=2, fsdp=4)), finished)
    assert there["eval/top1"] == here["eval/top1"]
    np.testing.assert_allclose(there["eval/loss"], here["eval/loss"], rtol=1e-5)


def test_the_resolved_configuration_is_in_the_folder_and_in_each_checkpoint(finished):
    stored = json.loads((finished / "config.json").read_text())
    assert stored["train"]["num_steps"] == 30
    for checkpoint in (finished / "checkpoints").iterdir():
        metadata = json.loads((checkpoint / "_CHECKPOINT_METADATA").read_text())
        assert metadata["custom_metadata"]["config"] == stored


@pytest.mark.slow
def test_the_loop_moves_nothing_between_host_and_devices_unasked(tmp_path):
    with jax.transfer_guard("disallow"):
        assert train(dataclasses.replace(BASE, train=TrainConfig(num_steps=12, eval_every_steps=5)), tmp_path) == 0
