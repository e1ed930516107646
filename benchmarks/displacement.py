"""The effect of rounding on a perturbation, element by element: random weights and gradients, no network.

Command: python -m benchmarks.displacement
"""

import jax
import jax.numpy as jnp

from benchmarks.timing import write_report
from gnp_scale.gnp import Gnp
from gnp_scale.gnp.perturbation import perturb

NUM_ENTRIES = 22_000_000
# Parameters, standard deviation of the weights, radius.
SIZES = ((220_000, 0.08, 0.05), (22_000_000, 0.03, 0.1), (22_000_000, 0.03, 0.05), (86_000_000, 0.02, 0.05))
TYPES = (("float32", "bfloat16"), ("float32", "float16"), ("bfloat16", "bfloat16"), ("float16", "float16"))
"""The type of the weights, and the type that the network sees."""


def main() -> None:
    """Measures every size and type and writes the table."""
    lines = [
        "Command: `python -m benchmarks.displacement`.",
        "",
        "Normal weights and gradients. `d` is the difference of the rounded w + eps and the rounded w. A size above",
        f"{NUM_ENTRIES / 1e6:.0f} M is of so many entries, with r scaled to have the same entries of eps.",
        "",
        "| parameters | s | r | w in | seen in | weights that move | norm of d / r | cosine with eps "
        "| d along eps / r |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for kept_in, seen_in in TYPES:
        lines += [row(*size, kept_in, seen_in) for size in SIZES]
    write_report("displacement", "What rounding makes of a perturbation", lines)


def row(num_params: int, deviation: float, radius: float, kept_in: str, seen_in: str) -> str:
    """The line of one size and pair of types."""
    num_entries = min(num_params, NUM_ENTRIES)
    r = radius * (num_entries / num_params) ** 0.5
    w, g = (jax.random.normal(jax.random.key(seed), (num_entries,)) for seed in range(2))
    w = (deviation * w).astype(kept_in).astype(jnp.float32)
    eps = r * g / jnp.linalg.norm(g)
    clean, moved = (x.astype(seen_in).astype(jnp.float32) for x in (w, perturb(w, g, r, Gnp(alpha=1)).params))
    d = moved - clean
    share, length, along = jnp.mean(d != 0), jnp.linalg.norm(d) / r, jnp.vdot(d, eps) / r**2
    return (
        f"| {num_params / 1e6:g} M | {deviation} | {radius} | {kept_in} | {seen_in} | {100 * share:.0f} % "
        f"| {length:.2f} | {along / length:.2f} | {along:.2f} |"
    )


if __name__ == "__main__":
    main()
