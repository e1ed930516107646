"""Runs that begin from pretrained weights, and commands for them."""

import hashlib
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from faults import DIGITS, poison, rows_of
from launcher import run
from safetensors.numpy import load_file, save_file
from test_rollback import jumping_stream
from test_weights import assert_equal, random_like

from gnp_scale import steps
from gnp_scale.checkpoint import Checkpoints, fingerprint, load_whole
from gnp_scale.cli import main
from gnp_scale.config import (
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    DivergenceConfig,
    GnpConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.evaluation.existing import evaluate_run
from gnp_scale.exit_codes import Exit
from gnp_scale.loop import train
from gnp_scale.resilience.rollback import ROLLBACKS_FILE
from gnp_scale.run import consensus
from gnp_scale.training.setup import Task
from gnp_scale.weights.saving import as_npz, as_safetensors

pytestmark = pytest.mark.usefixtures("unoptimized")

CONFIG = Config(
    data=DataConfig(batch_size=16, eval_batch_size=120),
    model=ModelConfig("vit_mu", patch_size=4),
    optim=OptimConfig(name="adamw", warmup_steps=0),
    mesh=MeshConfig(fsdp=4, tensor=2),
    train=TrainConfig(num_steps=2, log_every_steps=1, ema_decay=0.9),
)
RECIPE = """
from gnp_scale.config import *

def small():
    return Config(DataConfig(batch_size=16, eval_batch_size=120), ModelConfig("vit_mu", patch_size=4))
"""


def with_weights(file, config=CONFIG, **options):
    return replace(config, model=replace(config.model, init_from=str(file), **options))


def state_of(config):
    abstract = Task.of(config).abstract_state()
    return random_like((abstract.params, abstract.batch_stats))


@pytest.fixture
def file(set_mesh, tmp_path):
    set_mesh(fsdp=4, tensor=2)
    path = tmp_path / "w.safetensors"
    path.write_bytes(as_safetensors(CONFIG, state_of(CONFIG), 0, None))
    return path


def type_of(leaf):
    return leaf.shape, leaf.dtype, leaf.sharding


@pytest.mark.parametrize("model", [CONFIG.model, ModelConfig("resnet20", num_bn_groups=8)], ids=["vit", "resnet"])
def test_everything_in_the_first_state_follows_from_the_file(model, set_mesh, tmp_path):
    """The moving average and the copy in which gradients are taken too, in the types of a random state; also again,
    after a rollback to the start."""
    set_mesh(fsdp=4, tensor=2)
    half = replace(CONFIG.train, gradient_dtype="bfloat16")
    config = replace(CONFIG, model=replace(model, dtype="bfloat16"), train=half, gnp=GnpConfig(direction="reused"))
    expected = state_of(config)
    (tmp_path / "w.safetensors").write_bytes(as_safetensors(config, expected, 0, None))
    task = Task.of(with_weights(tmp_path / "w.safetensors", config))
    state = task.init_state()
    assert_equal((state.params, state.batch_stats), expected)
    assert_equal(state.ema, expected)
    assert_equal(state.copy, jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected[0]))
    assert jax.tree.map(type_of, state) == jax.tree.map(type_of, Task.of(config).abstract_state())
    jax.tree.map(lambda x: x.delete(), state)
    assert_equal(task.init_state().params, expected[0])


def test_what_the_file_does_not_have_is_as_in_a_random_state(file):
    tensors = load_file(file)
    tensors["head.weight"], tensors["head.bias"] = np.ones((3, 32), np.float32), np.ones(3, np.float32)
    del tensors["norm.weight"]
    save_file(tensors, file)
    task = Task.of(with_weights(file, init_allow=("norm.weight",)))
    assert task.initial.check().missing == ["norm.weight"]
    state, random = task.init_state(), Task.of(CONFIG).init_state()
    assert_equal((state.params["head"], state.params["norm"]["scale"]), (random.params["head"], np.ones(32)))
    np.testing.assert_array_equal(state.params["norm"]["bias"], tensors["norm.bias"])


def test_processes_with_different_files_do_not_start(file, monkeypatch):
    initial = Task.of(with_weights(file)).initial
    monkeypatch.setattr(consensus, "all_gather", lambda value: [value, (None, "another")])
    with pytest.raises(ConfigError, match="is not the same file on all machines"):
        initial.check()


@pytest.mark.parametrize("change", ["gone", "cut", "misfit"])
def test_a_file_that_cannot_be_used_leaves_no_run_folder(change, file, tmp_path):
    options = {"init_allow": ("head.*",)} if change == "misfit" else {}
    if change == "gone":
        file.unlink()
    if change == "cut":
        file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(ConfigError):
        train(with_weights(file, **options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_needs_its_file_only_at_the_beginning(file, tmp_path, capsys):
    config, run_dir = replace(with_weights(file), checkpoint=CheckpointConfig(every_steps=1)), tmp_path / "run"
    assert train(config, run_dir) == Exit.FINISHED
    record = json.loads((run_dir / "initial_weights.json").read_text())
    assert record["file"] == str(file)
    assert len(record["used"]) == len(load_file(file))
    export(run_dir, tmp_path / "out.safetensors", capsys)
    export(run_dir, tmp_path / "mean.safetensors", capsys, "--average", "2")
    check_mean(tmp_path / "mean.safetensors", run_dir)
    state = load_whole(run_dir)[1]
    written = load_file(tmp_path / "out.safetensors")["norm.bias"]
    np.testing.assert_array_equal(written, state["ema"][0]["norm"]["bias"])
    assert (written != np.asarray(state["params"]["norm"]["bias"])).any()
    file.unlink()
    assert train(config, run_dir) == Exit.FINISHED
    check_commands(run_dir, tmp_path, capsys)


@pytest.mark.slow
def test_a_rollback_to_the_start_goes_back_to_the_file(file, tmp_path, monkeypatch):
    """Step 4 is not finite, and nothing is saved: the end is that of a run that never saw the first four batches."""
    train_section = replace(DIGITS.train, num_steps=6)
    config = replace(with_weights(file, DIGITS, patch_size=4), mesh=CONFIG.mesh, train=train_section)
    with monkeypatch.context() as patch:
        patch.setattr(steps, "train_batches", jumping_stream(after_step=0, num_batches=4))
        assert train(config, tmp_path / "clean") == Exit.FINISHED
    poison(monkeypatch.setattr, (4, 0))
    rolling = replace(config, divergence=DivergenceConfig("rollback"))
    assert train(rolling, tmp_path / "rolled") == Exit.FINISHED
    (record,) = json.loads((tmp_path / "rolled" / ROLLBACKS_FILE).read_text())
    assert (record["good_step"], record["bad_step"]) == (0, 4)
    assert fingerprint(tmp_path / "rolled") == fingerprint(tmp_path / "clean")
    assert rows_of(tmp_path / "rolled") == rows_of(tmp_path / "clean")


@pytest.mark.slow
def test_a_run_that_begins_again_refuses_another_file(file, tmp_path, monkeypatch, capsys):
    """At a rollback, of which it tells the reason, and at a start without checkpoints; the record stays."""
    config, run_dir = replace(with_weights(file, DIGITS, patch_size=4), mesh=CONFIG.mesh), tmp_path / "run"
    config = replace(config, divergence=DivergenceConfig("rollback"))
    roll_back = Checkpoints.roll_back

    def change_file(*arguments):
        save_file(load_file(file) | {"norm.bias": np.ones(32, np.float32)}, file)
        return roll_back(*arguments)

    monkeypatch.setattr(Checkpoints, "roll_back", change_file)
    poison(monkeypatch.setattr, (4, 0))
    first = hashlib.sha256(file.read_bytes()).hexdigest()
    for _ in range(2):
        with pytest.raises(
            ConfigError, match=rf"is not the file .* \(SHA-256 \w+, not {first[:12]}\): put that one back"
        ):
            train(config, run_dir)
    assert capsys.readouterr().err.count("diverged: step 4") == 1
    assert json.loads((run_dir / "initial_weights.json").read_text())["sha256"] == first


def export(run_dir, out, capsys, *more):
    assert main(["export", str(run_dir), str(out), *more]) == Exit.FINISHED
    assert "the moving average of vit_mu after step 2" in capsys.readouterr().out


def check_mean(file, run_dir):
    """An average of the two checkpoints of a run has the scores that an evaluation of their average has."""
    bias = [load_whole(run_dir, step)[1]["ema"][0]["norm"]["bias"] for step in (1, 2)]
    np.testing.assert_array_equal(load_file(file)["norm.bias"], (np.asarray(bias[0]) + np.asarray(bias[1])) / 2)
    assert evaluate_run(with_weights(file), None)[1] == evaluate_run(CONFIG, run_dir, None, 2)[1]


def check_commands(run_dir, tmp_path, capsys):
    """An export has the scores of the run, and mistakes are one line and write nothing."""
    recipe = tmp_path / "recipes.py"
    recipe.write_text(RECIPE)
    export(run_dir, tmp_path / "out.npz", capsys, "--format", "npz", "--step", "2")
    of_run = evaluate_run(CONFIG, run_dir)[1]
    assert evaluate_run(with_weights(tmp_path / "out.safetensors"), None) == (0, of_run)
    capsys.readouterr()
    arguments = ("eval", f"{recipe}:small", "--model.init-from", str(tmp_path / "out.npz"))
    printed = json.loads(run(tmp_path, *arguments, num_devices=2).splitlines()[-1])
    assert printed == pytest.approx(of_run | {"step": 0}, rel=1e-5)
    before = sorted(tmp_path.iterdir())
    for arguments, part in (
        (["out.npz", "--format", "npz"], "exists: choose another name"),
        (["new.npz"], r"ends in .safetensors"),
        (["none/new.safetensors"], "there is no folder"),
        (["new.safetensors", "--step", "7"], "has no checkpoint of step 7: name another --step, of [1, 2]"),
        (["new.safetensors", "--step", "0"], "has no checkpoint of step 0: name another --step, of [1, 2]"),
        (["new.safetensors", "--step", "1", "--average", "2"], "1 intact checkpoints up to step 1, fewer than the 2"),
        (["new.safetensors", "--average", "3"], "fewer than the 3 to average"),
        (["new.safetensors", "--format", "onnx"], "there is no FORMAT onnx: it is one of timm, npz"),
    ):
        assert main(["export", str(run_dir), str(tmp_path / arguments[0]), *arguments[1:]]) == Exit.WRONG_CONFIG
        (line,) = capsys.readouterr().err.splitlines()
        assert part in line
    assert main(["eval", f"{recipe}:small"]) == Exit.WRONG_CONFIG
    assert "is a recipe without weights" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_for_jax_is_loaded_too(file, tmp_path):
    expected = state_of(CONFIG)
    (tmp_path / "w.npz").write_bytes(as_npz(CONFIG, expected))
    assert_equal(Task.of(with_weights(tmp_path / "w.npz")).init_state().params, expected[0])
