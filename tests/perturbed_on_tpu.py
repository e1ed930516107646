"""Compiles a penalised gradient for a TPU, which need not be there; prints the text of its program.

Command: python perturbed_on_tpu.py CHIP, in its environment.
"""

import sys

import jax
import jax.numpy as jnp

from benchmarks.tpu_estimates import CHIPS
from gnp_scale.config import MeshConfig
from gnp_scale.gnp import Gnp, penalize
from gnp_scale.mesh import FSDP, P, make_mesh, sharding


def loss_fn(params: list[jax.Array], x: jax.Array) -> jax.Array:
    for w in params:
        x = jnp.tanh(x @ w)
    return jnp.mean(jnp.square(x))


if __name__ == "__main__":
    with jax.set_mesh(make_mesh(MeshConfig(), CHIPS[sys.argv[1]].devices()[:1])):
        params, x = (jax.ShapeDtypeStruct((n, 1024), jnp.float32, sharding=sharding(P(FSDP))) for n in (1024, 4096))
        step = jax.jit(lambda params, x: penalize(loss_fn, Gnp(r=0.1, alpha=0.8))(params, x).grad)
        print(step.trace([params] * 2, x).lower(lowering_platforms=("tpu",)).compile().as_text())
