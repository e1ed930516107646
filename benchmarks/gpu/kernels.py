"""The operations between the passes, Triton beside XLA, on the parameters of two networks."""

import statistics
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
from gnp_kernels import Implementation, bench
from gnp_kernels.timing import interleave, ratio

from benchmarks.gpu.ceilings import ceiling
from benchmarks.gpu.sizes import MODELS, NUM_ROUNDS, TINY, on_gpu
from benchmarks.gpu.workers import in_turn, wait_for_turn
from gnp_scale.config import ModelConfig
from gnp_scale.models import registry


def main(folder: Path) -> None:
    """Prints a row for each operation and model."""
    print("| model | operation | Triton, us | XLA, us | Triton / XLA | share of copy |\n" + "|---" * 6 + "|")
    sys.exit(in_turn(folder, [("kernels_of", model) for model in MODELS], limit_s=150))


def worker(folder: Path, model: str) -> None:
    """Prints the rows of one model."""
    network = registry.create(ModelConfig("vit_mu" if TINY else model), (224, 224, 3), 1000, batch_size=1)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    ours: Implementation = "triton" if on_gpu() else "auto"
    num_loops = 50 if on_gpu() else 1
    with ThreadPoolExecutor(8) as pool:
        compiled = [
            (
                operation,
                {
                    (name, count): pool.submit(bench.program(operation, name, count).compile)
                    for name in (ours, "xla")
                    for count in (1, num_loops)
                },
            )
            for operation in bench.operations(shapes)
        ]
    wait_for_turn()
    for operation, jobs in compiled:
        all_s = interleave({key: bench.runner(operation, job.result()) for key, job in jobs.items()}, NUM_ROUNDS)
        seconds = {name: all_s[name, num_loops] for name in (ours, "xla")}
        if on_gpu():
            call_s = {name: statistics.median(all_s[name, 1]) for name in seconds}
            seconds = bench.per_operation(seconds, call_s, dict.fromkeys(call_s, num_loops))
        share = operation.num_bytes / statistics.median(seconds[ours]) / ceiling(folder, "bytes_per_s")
        times = " | ".join(f"{statistics.median(rounds) * 1e6:.0f}" for rounds in seconds.values())
        print(f"| {model} | {operation.name} | {times} | {ratio(seconds, ours, 'xla')} | {share:.2f} |", flush=True)
