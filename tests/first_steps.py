"""Prints the metrics of the first steps of a run in float64, as JSON: see `COMMAND`.

This program uses float64 instead of float32 everywhere. So a change in the order of sums changes only the last digits,
and a change in the computation changes the first ones. It compiles without LLVM's optimizations, in half of the time.
"""

import json
import platform
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from gnp_scale.config import (
    Config,
    DataConfig,
    GnpConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

NUM_STEPS = 3
COMMAND = "python tests/first_steps.py > tests/golden/first_steps.json"

VIT = Config(
    data=DataConfig(batch_size=16, crop_padding=1, mixup=0.2),
    model=ModelConfig("vit_mu", patch_size=4, depth=2, dropout=0.1, drop_path=0.1),
    optim=OptimConfig("adamw", learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
    train=TrainConfig(num_steps=10, ema_decay=0.9, label_smoothing=0.1, kernels="xla"),
)
CONV = Config(
    data=DataConfig(batch_size=16, crop_padding=1, flip=True),
    model=ModelConfig("resnet18", stem="cifar"),
    optim=OptimConfig("sgd", learning_rate=0.1, l2_in_loss=1e-3, clip_norm=5.0),
    train=TrainConfig(num_steps=10, kernels="xla"),
)
NETWORKS = {
    "vit": VIT,
    "resnet": CONV,
    "wide_resnet": replace(CONV, model=ModelConfig("wrn_16_4")),
}
BLENDS = {
    "paper": GnpConfig(),
    "unit_norm": GnpConfig(blend="unit_norm"),
    "gsam": GnpConfig(blend="gsam", alpha=0.4),
    "decoupled": GnpConfig(blend="decoupled", alpha=1.5),
}
VARIANTS = {
    "plain": GnpConfig(r=0.0),
    "adaptive": GnpConfig(metric="adaptive", r=0.5),
    "norm layers": GnpConfig(perturbed="norm"),
    "momentum": GnpConfig(direction="momentum", alpha=1.0),
    "reused": GnpConfig(direction="reused", reuse_every=2),
    "groups": GnpConfig(perturb_groups=2, ascent_fraction=0.5),
}
CASES = {f"{network} {blend}": (network, BLENDS[blend]) for network in NETWORKS for blend in BLENDS}
CASES |= {f"vit {variant}": ("vit", gnp) for variant, gnp in VARIANTS.items()}


def first_steps(config: Config, num_steps: int) -> list[dict[str, float]]:
    """The metrics of each of the first steps on one device."""
    config = replace(config, mesh=MeshConfig(1, 1, 1), model=replace(config.model))
    object.__setattr__(config.model, "dtype", "float64")  # A user cannot choose this type.
    with jax.set_mesh(make_mesh(config.mesh)):
        task = Task.of(config)
        step, state, rows = make_train_step(task), task.init_state(), []
        kinds = task.gnp.step_kinds(jnp.arange(num_steps))
        batches = train_batches(task.dataset, config.data, config.train.seed, 0, num_steps)
        for kind, batch in zip(kinds, batches, strict=True):
            state, metrics = step(state, batch, kind=StepKind(int(kind)))
            rows.append({name: float(value) for name, value in metrics.items()})
    return rows


def processor() -> str:
    """The kind of processor: another one may take sums in another order."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Prints the metrics of all cases, or of a number of steps of those that are named: NUMBER NAME ..."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    jnp.float32 = jnp.float64
    num_steps, *names = sys.argv[1:] or [NUM_STEPS, *CASES]
    configs = {name: replace(NETWORKS[CASES[name][0]], gnp=CASES[name][1]) for name in names}
    metrics = {name: first_steps(config, int(num_steps)) for name, config in configs.items()}
    versions = {"jax": jax.__version__, "processor": processor()}
    print(json.dumps({"command": COMMAND, **versions, "metrics": metrics}, indent=1))


if __name__ == "__main__":
    main()
