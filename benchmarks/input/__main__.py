"""Images per CPU-second of each loader, interleaved: one after another in each round, on the same JPEG files.

Command: python -m benchmarks.input FOLDER [--tf-python PYTHON] [--torch-python PYTHON] [--rounds N]

FOLDER has a folder `train` with one folder for each class. CPU seconds are those of the process of a loader and of its
workers. Each loader is pinned to as many CPUs as it has threads.
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.input.protocol import BATCH_SIZE
from benchmarks.timing import write_report
from benchmarks.workers import Worker
from gnp_scale.data.encode import Encoding
from gnp_scale.data.prepare import prepare

HERE = Path(__file__).parent


def main() -> None:
    """Times all loaders and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tf-python")
    parser.add_argument("--torch-python")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=8, help="of each round")
    args = parser.parse_args()
    folder = args.folder.absolute()
    with tempfile.TemporaryDirectory() as scratch:
        shards, marked, tar = (Path(scratch) / name for name in ("shards", "marked", "tar"))
        prepare(folder, shards, 64 << 20, 4)
        prepare(folder, marked, 64 << 20, 4, encoding=Encoding(restart_markers=True))
        prepare(folder, tar, 64 << 20, 4, "webdataset", Encoding(restart_markers=True))
        ours = [sys.executable, "-m", "benchmarks.input.ours"]
        commands = {
            "ours, tar with restart markers": [*ours, str(tar)],
            "ours, ArrayRecord with restart markers": [*ours, str(marked)],
            "ours, ArrayRecord": [*ours, str(shards)],
            "ours, folder": [*ours, str(folder)],
            "Grain, element by element": [sys.executable, "-m", "benchmarks.input.grain_elements", str(folder)],
        }
        for name, python, script in (
            ("tf.data", args.tf_python, "tf_data.py"),
            ("PyTorch and Pillow", args.torch_python, "torch_loader.py"),
        ):
            if python is not None:
                commands[name] = [python, str(HERE / script), str(folder)]
        rows = [row for num_threads in (1, 2) for row in timed(commands, num_threads, args.rounds, args.batches)]
    num_files = sum(1 for path in folder.rglob("*") if path.is_file())
    lines = [
        f"Command: `python -m benchmarks.input`. {num_files} files, {args.rounds} rounds of {args.batches} batches of",
        f"{BATCH_SIZE} images. Each loader reads files, shuffles, crops at random to 224 x 224, mirrors, and batches",
        "as uint8. The ratio is the median of those within a round, with the smallest and the largest.",
        "",
        "| threads | loader | images / CPU-s | images / s | the first / it, by CPU-s |",
        "|---|---|---|---|---|",
        *rows,
    ]
    write_report("input-pipeline", "The input pipeline beside others", lines)


def timed(commands: dict[str, list[str]], num_threads: int, num_rounds: int, num_batches: int) -> list[str]:
    """A row of the table for each loader."""
    loaders = {name: Worker([*command, str(num_threads)], num_threads) for name, command in commands.items()}
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    try:
        for loader in loaders.values():
            loader.get_ready()
        for _ in range(num_rounds):
            for name, loader in loaders.items():
                work = loader.ask(str(num_batches))
                rates[name].append((num_batches * BATCH_SIZE / work.cpu_s, num_batches * BATCH_SIZE / work.seconds))
    finally:
        for loader in loaders.values():
            loader.close()
    (base, *_) = rates.values()
    rows = []
    for name, of_rounds in rates.items():
        ratios = sorted(mine[0] / its[0] for mine, its in zip(base, of_rounds, strict=True))
        by_cpu, by_clock = (statistics.median(column) for column in zip(*of_rounds, strict=True))
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append(f"| {num_threads} | {name} | {by_cpu:.0f} | {by_clock:.0f} | {spread} |")
    return rows


if __name__ == "__main__":
    main()
