"""The operations between the passes, Triton beside XLA, each in a loop inside one program.

Called one by one from Python, most would take less time than the call.
"""

import statistics
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from gnp_kernels import AdamW, Implementation, Sgd, blend_update, dots, perturb, squared_norm
from gnp_kernels.timing import interleave, ratio

from benchmarks.gpu.ceilings import ceiling
from benchmarks.gpu.sizes import DECAY, MODELS, NUM_ROUNDS, TINY, on_gpu
from benchmarks.gpu.workers import in_turn, wait_for_turn
from gnp_scale.config import ModelConfig
from gnp_scale.models import registry

type Tree = Any


class Operation(NamedTuple):
    """What is timed, on all parameters of a network."""

    name: str
    num_bytes: int
    """Of an element, read and written."""
    body: Callable[[Tree, Tree, Implementation], Tree]
    """`body(state, read, implementation)`: the new state."""
    state: Tree
    read: Tree


def main(folder: Path) -> None:
    """Prints a row for each operation and model."""
    print("| model | operation | Triton, us | XLA, us | Triton / XLA | share of copy |\n" + "|---" * 6 + "|")
    sys.exit(in_turn(folder, [("kernels_of", model) for model in MODELS], limit_s=150))


def worker(folder: Path, model: str) -> None:
    """Prints the rows of one model."""
    network = registry.create(ModelConfig("vit_mu" if TINY else model), (224, 224, 3), 1000, batch_size=1)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    num_elements = sum(x.size for x in jax.tree.leaves(shapes))
    ours: Implementation = "triton" if on_gpu() else "auto"
    num_loops = 2 if TINY else 50
    with ThreadPoolExecutor(8) as pool:
        compiled = [
            (operation, {name: pool.submit(_program(operation, name, num_loops).compile) for name in (ours, "xla")})
            for operation in operations(shapes)
        ]
    wait_for_turn()
    for operation, programs in compiled:
        calls = {name: partial(job.result(), operation.state, operation.read) for name, job in programs.items()}
        seconds = interleave(calls, NUM_ROUNDS)
        call_s = {name: statistics.median(seconds[name]) / num_loops for name in calls}
        share = num_elements * operation.num_bytes / call_s[ours] / ceiling(folder, "bytes_per_s")
        times = " | ".join(f"{one_s * 1e6:.0f}" for one_s in call_s.values())
        print(f"| {model} | {operation.name} | {times} | {ratio(seconds, ours, 'xla')} | {share:.2f} |", flush=True)


def operations(shapes: Tree) -> Iterator[Operation]:
    """Norm, inner products, perturbation and update, with gradients in float32 and bfloat16."""

    def draw(seed: int, dtype: Any = jnp.float32) -> Tree:
        return jax.tree.map(lambda x: jax.random.normal(jax.random.key(seed), x.shape, dtype), shapes)

    zero = jnp.zeros(())
    for dtype in (jnp.float32, jnp.bfloat16):
        name, size = jnp.dtype(dtype).name, jnp.dtype(dtype).itemsize
        g1, g2 = draw(1, dtype), draw(2, dtype)
        yield Operation(f"squared_norm {name}", size, _norm, zero, g1)
        yield Operation(f"dots {name}", 2 * size, _dots, zero, (g1, g2))
        yield Operation(f"perturb {name}", 4 + 2 * size, partial(_moved, dtype=dtype), draw(3, dtype), (draw(0), g1))
        copy_dtype = None if dtype == jnp.float32 else dtype
        for rule in (Sgd(0.9, True, DECAY), AdamW(weight_decay=DECAY)):
            moments = (jax.tree.map(jnp.square, draw(3)),) * rule.num_moments
            state = draw(0), moments, draw(0, dtype) if copy_dtype else None, zero
            num_bytes = 8 + 8 * rule.num_moments + 2 * size + (2 if copy_dtype else 0)
            body = partial(_updated, rule=rule, copy_dtype=copy_dtype)
            yield Operation(f"{type(rule).__name__} {name}", num_bytes, body, state, (g1, g2))


def _program(operation: Operation, implementation: Implementation, num_loops: int) -> Any:
    def loop(state: Tree, read: Tree) -> Tree:
        def iterate(_: Any, state: Tree) -> Tree:
            # Otherwise XLA moves what only reads out of the loop.
            state, fresh = jax.lax.optimization_barrier((state, read))
            return operation.body(state, fresh, implementation)

        return jax.lax.fori_loop(0, num_loops, iterate, state)

    return jax.jit(loop).lower(operation.state, operation.read)


def _norm(state: Tree, read: Tree, implementation: Implementation) -> Tree:
    return squared_norm(read, implementation=implementation)


def _dots(state: Tree, read: Tree, implementation: Implementation) -> Tree:
    return jnp.sum(jnp.stack(dots(*read, implementation=implementation)))


def _moved(state: Tree, read: Tree, implementation: Implementation, dtype: Any) -> Tree:
    params, g1 = read
    return perturb(params, g1, 0.05, dtype=dtype, implementation=implementation)


def _updated(state: Tree, read: Tree, implementation: Implementation, rule: Any, copy_dtype: Any) -> Tree:
    (params, moments, *_), (g1, g2) = state, read
    new = blend_update(
        params, g1, g2, moments, rule=rule, c1=0.2, c2=0.8, learning_rate=1e-3, count=7, copy_dtype=copy_dtype,
        implementation=implementation,
    )  # fmt: skip
    return new.params, new.moments, new.copy, new.update_squared_norm + new.params_squared_norm
