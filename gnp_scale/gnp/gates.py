"""Gates: on which steps the penalty is on. The other steps are plain, and cost one pass.

A gate maps the step, a number or an array of steps, to booleans.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

GATE = 0x6A7E
"""Folded into the key of a gate's seed, so that its draws differ from other draws with the same seed."""

type Gate = Callable[[Any], jax.Array]


def every(k: int) -> Gate:
    """On at steps 0, k, 2k, ..."""
    if k < 1:
        raise ValueError(f"A gate opens every k >= 1 steps. Got k={k}. Give a positive number of steps.")
    return lambda step: jnp.asarray(step) % k == 0


def window(start: int, stop: int) -> Gate:
    """On at steps start, ..., stop - 1.

    From the end of the learning-rate warm-up it is the "zero warm-up" of arXiv 2406.09723, section 5.
    """
    if not 0 <= start < stop:
        raise ValueError(f"A window is 0 <= start < stop. Got start={start}, stop={stop}. Give steps in this order.")
    return lambda step: (jnp.asarray(step) >= start) & (jnp.asarray(step) < stop)


def bernoulli(p: float, seed: int) -> Gate:
    """On with probability p at each step, by a draw that depends only on the seed and the step.

    It ignores JAX's default generator: the random bits of some generators differ between one step and an array of
    steps.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"A probability is in [0, 1]. Got p={p}. Give a share of the steps.")

    @partial(jnp.vectorize, signature="()->()")
    def draw(step: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), GATE), step)
        return jax.random.bernoulli(key, jnp.float32(p))

    return lambda step: draw(jnp.asarray(step))
