"""The project's epochs: `gnp_scale.loop.train`, which waits after each of them. Command: epoch_ours FOLDER KIND.

KIND is "plain" or "penalised".
"""

import sys
from pathlib import Path

import jax

from benchmarks.peers.epoch_setting import NUM_WARM_UP_STEPS, Setting
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
from gnp_scale.loop import train
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.resilience.preemption import StopRequest
from gnp_scale.run import processes

MOST_STEPS = 10**6


class EpochGate(StopRequest):
    """Waits for a line of standard input after each epoch; the run stops when there are no more."""

    def __init__(self, setting: Setting, run_dir: Path) -> None:
        super().__init__()
        self._num_steps_of_epoch, self._run_dir = setting.num_steps, run_dir

    def reached(self, step: int, batch: int = 0) -> bool:
        """Whether to stop after `step`, and not in an evaluation; before an answer, its arrays are computed."""
        num_steps = step - NUM_WARM_UP_STEPS
        if batch > 1 or num_steps < 0 or num_steps % self._num_steps_of_epoch:
            return False
        jax.block_until_ready(jax.live_arrays())
        rows = read_metrics(self._run_dir)
        print("ready" if num_steps == 0 else rows[-1]["train/loss"], flush=True)
        return not sys.stdin.readline()


def config(setting: Setting, kind: str) -> Config:
    """The configuration of a run with this setting."""
    is_vit = setting.model == "vit"
    return Config(
        data=DataConfig(setting.data, batch_size=setting.batch_size, num_examples=setting.num_examples),
        model=model(setting),
        gnp=GnpConfig(r=setting.radius, alpha=1.0 if kind == "penalised" else 0.0),
        optim=OptimConfig(
            "adamw" if is_vit else "sgd",
            learning_rate=setting.learning_rate,
            schedule="constant",
            momentum=setting.momentum,
            weight_decay=setting.weight_decay if is_vit else 0.0,
            decay_norm_and_bias=is_vit,
        ),
        mesh=MeshConfig(),
        train=TrainConfig(
            num_steps=MOST_STEPS, log_every_steps=min(50, setting.num_steps), eval_every_steps=MOST_STEPS
        ),
        checkpoint=CheckpointConfig(every_steps=None),
    )


def model(setting: Setting) -> ModelConfig:
    """The network of this setting."""
    if setting.model == "resnet18":
        return ModelConfig("resnet18", stem="cifar")
    return ModelConfig(
        "vit_mu",
        patch_size=setting.patch_size,
        depth=setting.depth,
        width=setting.width,
        num_heads=setting.num_heads,
    )


def main(folder: str, kind: str) -> None:
    """Trains until standard input ends."""
    processes.start()
    processes.check_devices()
    setting, run_dir = Setting.read(Path(folder)), Path(folder) / kind
    train(config(setting, kind), run_dir, EpochGate(setting, run_dir))


if __name__ == "__main__":
    main(*sys.argv[1:])
