"""The error of g2 - g1 when gradients are taken at a bfloat16 copy of the parameters, by the rounding of that copy.

Command: python -m benchmarks.rounding [--seeds N]
"""

import argparse
import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

import gnp_kernels
import jax
import jax.numpy as jnp

from benchmarks.timing import write_report
from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.gnp.blend import norm, weighted_sum
from gnp_scale.mesh import make_mesh
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_examples, make_loss, make_train_step

type Tree = Any
type Rounding = Callable[[Tree, Tree, float], Tree]

MODELS = {
    "ViT-S": ModelConfig(name="vit_s", patch_size=2),
    "ViT-B, 3 blocks": ModelConfig(name="vit_b", patch_size=2, depth=3),
}
RADII = (0.05, 0.1)
NUM_STEPS = 100
BATCH_SIZE = 64
SEED = 7


def main() -> None:
    """Measures every network, radius and rounding, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    num_seeds = parser.parse_args().seeds
    lines = [
        f"Command: `python -m benchmarks.rounding --seeds {num_seeds}`.",
        "",
        f"Digits in patches of 2 x 2, batch {BATCH_SIZE}, after {NUM_STEPS} plain updates of AdamW; means over",
        f"{num_seeds} seeds of the whole run, and the lowest in brackets. The displacement is what the network sees of",
        "eps: the difference of the two copies. g2 - g1 is compared with that in float32 throughout.",
        "",
        "* nearest: both copies rounded to nearest, as the trainer does;",
        "* stochastic: the perturbed copy rounded stochastically, the clean one to nearest;",
        "* stochastic, both: both, with the same random bits;",
        "* nearest, computed in float32: the copies of the first row, and the gradients of a float32 network at them.",
        "",
        "| network, parameters | r | rounding | weights that move | displacement / r | its cosine with eps "
        "| norm of g2 - g1 / float32 | cosine of g2 - g1 with float32 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])):
        for name, model in MODELS.items():
            lines += rows(name, model, num_seeds)
    write_report("rounding", "Rounding of the copy that gradients are taken at", lines)


def rows(name: str, model: ModelConfig, num_seeds: int) -> list[str]:
    """The rows of one network."""
    measured = [measure(model, seed) for seed in range(num_seeds)]
    num_params = measured[0].pop("num_params")
    for other in measured[1:]:
        other.pop("num_params")
    lines = []
    for r, rounding in measured[0]:
        columns = list(zip(*(one[r, rounding] for one in measured), strict=True))
        *means, cosine = (statistics.mean(column) for column in columns)
        share, *others = means
        numbers = " | ".join(f"{number:.2f}" for number in others)
        lines.append(
            f"| {name}, {num_params / 1e6:.1f} M | {r} | {rounding} | {100 * share:.0f} % | {numbers} "
            f"| {cosine:.4f} ({min(columns[-1]):.4f}) |"
        )
    return lines


def measure(model: ModelConfig, seed: int) -> dict[Any, Any]:
    """For each radius and rounding: share of weights that move, displacement over r, its cosine with eps, and norm
    (over that in float32) and cosine of g2 - g1; and the number of parameters."""
    task, half = (make_task(model, dtype, seed) for dtype in ("float32", "bfloat16"))
    state, batch = trained(task, seed)
    wide_gradient, gradient = (make_gradient(each, state, batch) for each in (task, half))
    w = state.params
    results: dict[Any, Any] = {"num_params": sum(x.size for x in jax.tree.leaves(w))}
    for r in RADII:
        g1 = wide_gradient(w)
        expected = difference(wide_gradient(moved(w, g1, r)), g1)
        copies = {
            "nearest": (gradient, None, None),
            "stochastic": (gradient, None, SEED),
            "stochastic, both": (gradient, SEED, SEED),
            "nearest, computed in float32": (at_float32(wide_gradient), None, None),
        }
        for name, (gradient_at, clean_seed, perturbed_seed) in copies.items():
            clean = moved(w, g1, 0.0, jnp.bfloat16, clean_seed)
            g1_here = gradient_at(clean)
            perturbed = moved(w, g1_here, r, jnp.bfloat16, perturbed_seed)
            got = difference(gradient_at(perturbed), g1_here)
            displacement = difference(perturbed, clean)
            share = sum(jnp.count_nonzero(x) for x in jax.tree.leaves(displacement)) / results["num_params"]
            length, gain = norm(displacement) / r, norm(got) / norm(expected)
            numbers = (share, length, cosine(displacement, g1_here), gain, cosine(got, expected))
            results[r, name] = tuple(map(float, numbers))
    return results


def make_task(model: ModelConfig, dtype: Any, seed: int) -> Task:
    """Training of `model`, computed in `dtype`."""
    return Task.of(
        Config(
            data=DataConfig(batch_size=BATCH_SIZE),
            model=dataclasses.replace(model, dtype=dtype),
            gnp=GnpConfig(),
            optim=OptimConfig(name="adamw", learning_rate=3e-4, warmup_steps=10),
            train=TrainConfig(num_steps=1000, seed=seed),
        )
    )


def trained(task: Task, seed: int) -> tuple[Any, Any]:
    """The state after some plain updates, and the last batch."""
    state, train_step, batch = task.init_state(), make_train_step(task), None
    for batch in train_batches(task.dataset, task.config.data, seed, 0, NUM_STEPS):
        state, _ = train_step(state, batch, kind=StepKind.PLAIN)
    return state, batch


def make_gradient(task: Task, state: Any, batch: Any) -> Callable[[Tree], Tree]:
    """The gradient on `batch` as a function of the parameters, in their types."""
    loss_fn, examples = make_loss(task), make_examples(task, batch, state.step)
    return jax.jit(jax.grad(lambda params: loss_fn(params, examples, state.batch_stats)[0]))


def at_float32(gradient: Callable[[Tree], Tree]) -> Callable[[Tree], Tree]:
    """`gradient` of parameters that are first cast to float32."""
    return lambda params: gradient(jax.tree.map(lambda x: x.astype(jnp.float32), params))


def moved(w: Tree, g: Tree, r: float, dtype: Any = None, seed: int | None = None) -> Tree:
    """w + r g / ||g||, rounded to nearest, or with a seed stochastically to bfloat16."""
    if seed is None:
        return gnp_kernels.perturb(w, g, r / norm(g), dtype=dtype, implementation="xla")
    leaves, structure = jax.tree.flatten(moved(w, g, r))
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return structure.unflatten(map(stochastic_bfloat16, keys, leaves))


def stochastic_bfloat16(key: jax.Array, x: jax.Array) -> jax.Array:
    """Finite float32 `x` rounded to bfloat16: away from 0 with the probability of the part that truncation loses."""
    raised = jax.lax.bitcast_convert_type(x, jnp.uint32) + jax.random.bits(key, x.shape, jnp.uint16)
    return jax.lax.bitcast_convert_type(raised & jnp.uint32(0xFFFF0000), jnp.float32).astype(jnp.bfloat16)


def difference(a: Tree, b: Tree) -> Tree:
    """a - b in float32."""
    return weighted_sum(1.0, a, -1.0, b)


def cosine(a: Tree, b: Tree) -> jax.Array:
    """Cosine of the angle between two trees."""
    dots = gnp_kernels.dots(a, b, implementation="xla")
    return dots.a_b / jnp.sqrt(dots.a_a * dots.b_b)


if __name__ == "__main__":
    main()
