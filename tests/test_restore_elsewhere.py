"""A run resumes on another mesh, other devices or another number of processes: no flags, the same examples.

Each part of a run has the losses of an unmoved run. The first two after the move are equal to 1e-6, which is 16 units
in the last place of float32: with other examples they would differ in the third digit. After that the difference grows
as rounding errors do in any run, by about a factor of ten in ten steps (Adam divides by small second moments).
"""

import dataclasses
import shutil

import numpy as np
import pytest
from launcher import run

from gnp_scale.config import CheckpointConfig, Config, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.loop import train
from gnp_scale.monitoring.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("unoptimized")

MOVED_AFTER, NUM_STEPS = 4, 8


def cut_off(run_dir, moved_dir):
    """The folder of a run whose machines were all lost before the last checkpoint."""
    shutil.copytree(run_dir, moved_dir)
    shutil.rmtree(moved_dir / "checkpoints" / str(NUM_STEPS))
    return moved_dir


def assert_same_run(moved_dir, run_dir):
    moved, stayed = (read_metrics(folder) for folder in (moved_dir, run_dir))
    assert [row["step"] for row in moved] == [row["step"] for row in stayed] == list(range(1, NUM_STEPS + 1))
    losses = np.array([[row["train/loss"] for row in rows] for rows in (moved, stayed)])
    np.testing.assert_allclose(*losses[:, MOVED_AFTER : MOVED_AFTER + 2], rtol=1e-6)
    np.testing.assert_allclose(*losses, rtol=1e-3)


CONFIG = Config(
    data=DataConfig(batch_size=64, eval_batch_size=120, crop_padding=1, mixup=0.2),
    model=ModelConfig(name="vit_mu", patch_size=2, num_heads=4, dropout=0.1),
    optim=OptimConfig(name="adamw", learning_rate=1e-3, warmup_steps=5),
    train=TrainConfig(num_steps=NUM_STEPS, log_every_steps=1, eval_every_steps=NUM_STEPS),
    checkpoint=CheckpointConfig(every_steps=MOVED_AFTER),
)


@pytest.mark.long
def test_another_mesh(tmp_path, capsys):
    """Every axis has another size."""
    before, after = MeshConfig(fsdp=2, tensor=4), MeshConfig(replica=2, fsdp=4)
    assert train(dataclasses.replace(CONFIG, mesh=before), tmp_path / "run") == 0
    moved_dir = cut_off(tmp_path / "run", tmp_path / "moved")
    capsys.readouterr()
    assert train(dataclasses.replace(CONFIG, mesh=after), moved_dir) == 0
    said = capsys.readouterr().err
    assert f"going on after step {MOVED_AFTER}, saved on replica {before.replica} x fsdp {before.fsdp} x" in said
    assert "the same examples, numbers equal up to rounding" in said
    assert_same_run(moved_dir, tmp_path / "run")


COMMAND = (
    *("train", "configs/digits.py:quickstart", "--data.batch-size", "64", "--optim.warmup-steps", "5"),
    *("--mesh.tensor", "2", "--model.depth", "1", "--model.patch-size", "4"),
    *("--train.num-steps", str(NUM_STEPS), "--train.log-every-steps", "1", "--train.eval-every-steps", str(NUM_STEPS)),
    *("--checkpoint.every-steps", str(MOVED_AFTER)),
)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder of a run of two processes with four devices each."""
    folder = tmp_path_factory.mktemp("two")
    run(folder / "log", *COMMAND, "--run-dir", str(folder / "run"), num_processes=2)
    return folder / "run"


MACHINES = [
    pytest.param(1, 4, id="one process with half the devices"),
    pytest.param(4, 8, id="four processes", marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("num_processes", "num_devices"), MACHINES)
def test_other_processes_and_devices(num_processes, num_devices, two_processes, tmp_path):
    moved_dir = cut_off(two_processes, tmp_path / "moved")
    command = [*COMMAND, "--run-dir", str(moved_dir)]
    said = run(tmp_path / "log", *command, num_processes=num_processes, num_devices=num_devices)
    assert (
        f"going on after step {MOVED_AFTER}, saved on replica 1 x fsdp 4 x tensor 2 (cpu, 2 processes), now on" in said
    )
    assert f"(cpu, {num_processes} processes): the same examples, numbers equal up to rounding" in said
    assert_same_run(moved_dir, two_processes)
