"""The cost of each variant of the penalty: time, FLOPs and temporary memory relative to plain training.

Command: python -m benchmarks.variants [--rounds N]
"""

import argparse
import statistics
from typing import Any

import jax
import numpy as np
from gnp_kernels.timing import interleave

from benchmarks.tasks import MODELS, SETTING, compile_steps, make_task, updates
from benchmarks.timing import write_report
from gnp_scale.config import GnpConfig, MeshConfig, ModelConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh

# For each variant, its settings and the number of steps after which it repeats itself.
VARIANTS = {
    "plain": (GnpConfig(alpha=0.0), 1),
    "full": (GnpConfig(), 1),
    "ascent_fraction 1/4": (GnpConfig(ascent_fraction=0.25), 1),
    "every 10": (GnpConfig(gate="every", gate_every=10), 10),
    "reused, k = 5": (GnpConfig(direction="reused", reuse_every=5), 5),
    "momentum": (GnpConfig(direction="momentum", alpha=1.0), 1),
    "stale": (GnpConfig(direction="stale", alpha=1.0), 1),
    "friendly": (GnpConfig(direction="friendly"), 1),
    "layerwise": (GnpConfig(metric="layerwise"), 1),
}


def main() -> None:
    """Measures every variant on every network and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    num_rounds = parser.parse_args().rounds
    lines = [
        f"{SETTING} Time: median over {num_rounds} rounds, with quartiles, of the ratio to plain within a round, for",
        "a step on average over those after which the variant repeats itself. FLOPs: counted by the compiler, likewise",
        "averaged. Memory: temporary bytes of the variant's largest program, by the compiler; the limit is 1.05 times",
        "plain and one gradient.",
    ]
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for name, model in MODELS.items():
            lines += ["", f"## {name}", "", *table(model, num_rounds)]
    write_report("variants", "Cost of the variants", lines)


def table(model: ModelConfig, num_rounds: int) -> list[str]:
    """The rows of the variants of one network."""
    runs, flops, memory = {}, {}, {}
    for name, (gnp, period) in VARIANTS.items():
        task = make_task(model, gnp)
        kinds = [StepKind(kind) for kind in task.gnp.step_kinds(np.arange(period))]
        compiled = compile_steps(task, kinds)
        runs[name] = updates(task, compiled, kinds)
        flops[name] = statistics.mean(_flops(compiled[kind]) for kind in kinds)
        memory[name] = max(step.memory_analysis().temp_size_in_bytes for step in compiled.values())
    seconds = interleave(runs, num_rounds)
    params = make_task(model, GnpConfig()).abstract_state().params
    gradient_bytes = sum(w.size * w.dtype.itemsize for w in jax.tree.leaves(params))
    limit = 1.05 * memory["plain"] + gradient_bytes
    rows = ["| variant | time / plain | FLOPs / plain | memory / plain | memory / limit |", "|---|---|---|---|---|"]
    for name, (_, period) in VARIANTS.items():
        ratios = [a / period / b for a, b in zip(seconds[name], seconds["plain"], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        rows.append(
            f"| {name} | {median:.2f} ({low:.2f} to {high:.2f}) | {flops[name] / flops['plain']:.2f} "
            f"| {memory[name] / memory['plain']:.2f} | {memory[name] / limit:.2f} |"
        )
    return rows


def _flops(compiled: Any) -> float:
    return compiled.cost_analysis()["flops"]


if __name__ == "__main__":
    main()
