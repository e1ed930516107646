"""Whole epochs, from the stored images to updated parameters: the project's run, loops of Flax, and of PyTorch.

Command: python -m benchmarks.peers.epochs [--torch-python PYTHON] [--rounds N] [--model vit|resnet18]
                                           [--data fashion_mnist|digits] [--num-examples N] [--threads N]

Each is a process of its own, and trains an epoch in each round. It writes a dated file.
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
from gnp_kernels.timing import ratio

from benchmarks.peers.epoch_ours import model
from benchmarks.peers.epoch_setting import NUM_WARM_UP_STEPS, Setting
from benchmarks.timing import write_report
from benchmarks.workers import Worker
from gnp_scale.config import DataConfig
from gnp_scale.data import small_sets, sources
from gnp_scale.models import registry

SCRIPT = Path(__file__).with_name("torch_epochs.py")
PATCH_SIZE = {"fashion_mnist": 4, "digits": 2}
OURS = {"plain": "ours", "penalised": "ours, penalised"}
PEERS = {
    "plain": {"Flax Linen and optax": ("flax", "plain"), "PyTorch": ("torch", "plain")},
    "penalised": {
        "Flax Linen and optax, by hand": ("flax", "by hand"),
        "Flax Linen and `optax.contrib.sam`": ("flax", "optax.contrib.sam"),
        "PyTorch and SAM": ("torch", "SAM"),
    },
}
"""The peers of each kind of epoch: a title, the program, and what it is told to do."""


def main() -> None:
    """Times all of them, and writes the table."""
    has_fashion = small_sets.DEBIAN_FASHION_MNIST.exists()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=PATCH_SIZE, default="fashion_mnist" if has_fashion else "digits")
    parser.add_argument("--num-examples", type=int, help="of an epoch; default: all")
    parser.add_argument("--model", choices=("vit", "resnet18"), default="vit")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--depth", type=int, default=2, help="blocks of the transformer")
    parser.add_argument("--width", type=int, default=96, help="channels of the transformer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--torch-python", help="an interpreter with PyTorch and NumPy")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        setting = prepare(Path(scratch), args)
        commands = commands_of(scratch, args.torch_python)
        seconds, peaks = timed(commands, args.rounds, args.threads)
    lines = [*about(setting, args), *rows(setting, seconds, peaks)]
    write_report("epochs", "Whole epochs beside the peers'", lines)


def prepare(folder: Path, args: argparse.Namespace) -> Setting:
    """Writes the setting, and the stored images that the peers read; the project reads its own source."""
    dataset = sources.load(DataConfig(args.data, num_examples=args.num_examples))
    train = dataset.train.read(np.arange(len(dataset.train)), None)
    height, _, num_channels = dataset.image_shape
    setting = Setting(
        *(args.data, len(dataset.train), args.batch_size, height, num_channels, dataset.num_classes),
        *(dataset.mean, dataset.std, args.model, PATCH_SIZE[args.data], args.depth, args.width, args.width // 24),
    )
    network = registry.create(model(setting), dataset.image_shape, dataset.num_classes, args.batch_size)
    params, _ = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    setting = replace(setting, num_parameters=sum(math.prod(w.shape) for w in jax.tree.leaves(params)))
    if setting.num_steps < NUM_WARM_UP_STEPS:
        raise SystemExit(f"an epoch has {setting.num_steps} steps: give at least {NUM_WARM_UP_STEPS} batches of images")
    np.save(folder / "image.npy", train["image"])
    np.save(folder / "label.npy", train["label"])
    setting.write(folder)
    return setting


def commands_of(folder: str, torch_python: str | None) -> dict[str, list[str]]:
    """The command of each process, by its title."""
    programs = {"flax": [sys.executable, "-m", "benchmarks.peers.epoch_flax"]}
    if torch_python is not None:
        programs["torch"] = [torch_python, str(SCRIPT)]
    ours = [sys.executable, "-m", "benchmarks.peers.epoch_ours", folder]
    found = {}
    for kind, title in OURS.items():
        found[title] = [*ours, kind]
        peers = {title: (program, task) for title, (program, task) in PEERS[kind].items() if program in programs}
        found |= {title: [*programs[program], folder, task] for title, (program, task) in peers.items()}
    return found


def timed(
    commands: dict[str, list[str]], num_rounds: int, num_threads: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Seconds of each epoch, and the peak memory in bytes, of each process."""
    # The trainer would simulate two devices; its peers have one.
    variables = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}
    workers = {title: Worker(command, num_threads, variables) for title, command in commands.items()}
    try:
        for worker in workers.values():
            worker.get_ready()
        seconds: dict[str, list[float]] = {title: [] for title in workers}
        for number in range(1, num_rounds + 1):
            for title, worker in workers.items():
                work = worker.ask("epoch")
                assert math.isfinite(float(work.answer)), f"{title}: the loss is {work.answer}"
                seconds[title].append(work.seconds)
                print(f"round {number}: {title}: {work.seconds:.1f} s, loss {float(work.answer):.3f}", flush=True)
        return seconds, {title: worker.peak_bytes for title, worker in workers.items()}
    finally:
        for worker in workers.values():
            worker.close()


def about(setting: Setting, args: argparse.Namespace) -> list[str]:
    """What was compared, for the report."""
    network = "ResNet-18 with the stem for small images, SGD with Nesterov's momentum"
    if setting.model == "vit":
        sizes = f"{setting.depth} blocks, width {setting.width}, {setting.num_heads} heads, patch {setting.patch_size}"
        network = f"Vision transformer ({sizes}, {setting.num_parameters:,} parameters), AdamW"
    return [
        f"Command: `python -m benchmarks.peers.epochs`, {args.rounds} rounds, in each an epoch of every row, one after",
        "another.",
        f"{network} with learning rate {setting.learning_rate:g}, float32, batch {setting.batch_size}.",
        f"{setting.data}: {setting.num_examples} images in {setting.num_steps} steps, shuffled, without augmentation.",
        f"Penalised: SAM, radius {setting.radius} and alpha 1. Each process has {args.threads} threads, and is stopped",
        f"while another one trains; {NUM_WARM_UP_STEPS} steps before the first epoch compile and are not timed.",
        "",
        "Ours is the loop of `gnp-scale train` on one device: its reading threads, the check of every number before",
        "each update, the telemetry of both passes, metrics and TensorBoard events. The peers have the defaults of",
        "their libraries, and read the loss once in an epoch. The ratio is the median of the times within a round,",
        "with quartiles; below 1, ours is faster. Peak memory is the largest resident set, compilation included.",
        "",
    ]


def rows(setting: Setting, seconds: dict[str, list[float]], peaks: dict[str, int]) -> list[str]:
    """The table."""
    lines = [
        "| epoch | program | images / s | time of ours / it | peak memory, MB | memory of ours / it |",
        "|---|---|---|---|---|---|",
    ]
    for kind, ours in OURS.items():
        for title in [ours, *PEERS[kind]]:
            if title not in seconds:
                lines.append(f"| {kind} | {title} | not run | | | |")
                continue
            rate = setting.num_steps * setting.batch_size / statistics.median(seconds[title])
            memory = f"{peaks[title] / 1e6:.0f} | {peaks[ours] / peaks[title]:.2f}"
            lines.append(f"| {kind} | {title} | {rate:.0f} | {ratio(seconds, ours, title)} | {memory} |")
    return lines


if __name__ == "__main__":
    main()
