"""Whether a gradient is large beside those of the steps before: AE-SAM (arXiv 2304.14647)."""

import jax
import jax.numpy as jnp

from gnp_scale.gnp.blend import Scalar
from gnp_scale.gnp.choices import NormGate

type State = dict[str, jax.Array]
"""`mean` and `variance` of ||g1||^2, moving averages; scalars."""


def judge(gate: NormGate, state: State, norm: jax.Array, threshold: Scalar) -> tuple[jax.Array, State]:
    """Whether `norm` is large, and the averages with it. Averages that are not finite leave the gate open.

    At the first step, where both averages were 0, it is large unless `threshold` is above 1 / sqrt(1 - decay).
    """
    squared = jnp.square(norm).astype(state["mean"].dtype)
    mean = gate.decay * state["mean"] + (1 - gate.decay) * squared
    variance = gate.decay * state["variance"] + (1 - gate.decay) * jnp.square(squared - mean)
    bound = mean + threshold * jnp.sqrt(variance)
    return (squared >= bound) | ~jnp.isfinite(bound), {"mean": mean, "variance": variance}
