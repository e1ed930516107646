"""Checks the kernels on the current device, times them against XLA and a copy, and finds the best block sizes."""

import datetime
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp_kernels import tuning
from gnp_kernels.blend_update.api import AdamW, Sgd, blend_update
from gnp_kernels.dispatch import Implementation
from gnp_kernels.perturb.api import perturb
from gnp_kernels.squared_norm.api import dots, squared_norm
from gnp_kernels.timing import interleave, ratio
from gnp_kernels.trees import Tree

_COPY_BYTES = 1 << 28
_TOLERANCE = 1e-5
"""Relative to the largest entry of a result: for sums in another order; rounding to bfloat16 may differ by one unit."""


class Op(NamedTuple):
    """One operation on one tree, ready to be timed."""

    name: str
    tuned: str
    """The operation whose block size it uses."""
    make: Callable[[Implementation], Callable[[], Any]]
    """The compiled operation, on its own arrays."""
    num_bytes: int
    """Bytes that one pass reads and writes."""


def bench(shapes: Tree, implementation: Implementation, num_rounds: int, *, tune: bool) -> Iterator[str]:
    """Lines of a Markdown report on all operations over a tree of arrays of the given shapes.

    Raises:
        AssertionError: an implementation's numbers differ from the reference's.
    """
    device = jax.devices()[0]
    yield f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {device.device_kind}, JAX {jax.__version__}."
    yield f"{len(jax.tree.leaves(shapes))} arrays, {_size(shapes):,} elements; medians over {num_rounds} rounds."
    yield ""
    yield f"| operation | {implementation} / XLA | share of copy bandwidth | block size, warps |"
    yield "|---|---|---|---|"
    chosen: dict[str, tuning.Tuning] = {}
    for op in ops(shapes):
        check(op, implementation)
        if tune and implementation == "triton" and op.tuned not in chosen:
            chosen[op.tuned] = best_tuning(op, num_rounds)
        yield _row(op, implementation, num_rounds, chosen.get(op.tuned))
    if chosen:
        yield ""
        yield "The best block sizes, as `_DEFAULTS` of gnp_kernels/tuning.py holds them:"
        yield ""
        for name, best in chosen.items():
            yield f'    "{name}": Tuning({best.block_size}, {best.num_warps}),'


def ops(shapes: Tree) -> list[Op]:
    """All operations, in float32 and with bfloat16 gradients and copies."""
    n = _size(shapes)
    w, g1, g2 = (partial(_draw, shapes, seed) for seed in range(3))
    half = jnp.bfloat16
    return [
        Op("squared_norm f32", "squared_norm", lambda i: _compiled(squared_norm, i, g1()), 4 * n),
        Op("dots f32", "dots", lambda i: _compiled(dots, i, g1(), g2()), 8 * n),
        Op("dots bf16", "dots", lambda i: _compiled(dots, i, g1(half), g2(half)), 4 * n),
        Op("perturb f32", "perturb", lambda i: _compiled(perturb, i, w(), g1(), jnp.float32(0.05)), 12 * n),
        Op(
            "perturb bf16",
            "perturb",
            lambda i: _compiled(partial(perturb, dtype=half), i, w(), g1(half), jnp.float32(0.05)),
            8 * n,
        ),
        Op("sgd f32", "blend_update", lambda i: _updates(Sgd(0.9, True, 1e-4), i, w(), g1(), g2()), 24 * n),
        Op("adamw f32", "blend_update", lambda i: _updates(AdamW(), i, w(), g1(), g2()), 32 * n),
        Op(
            "adamw bf16",
            "blend_update",
            lambda i: _updates(AdamW(), i, w(), g1(half), g2(half), copy_dtype=half),
            30 * n,
        ),
    ]


def check(op: Op, implementation: Implementation) -> None:
    """Raises AssertionError if the results of an implementation differ from those of the reference."""
    got, expected = op.make(implementation)(), op.make("xla")()
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if x.size:
            tolerance = _TOLERANCE if x.dtype == jnp.float32 else float(jnp.finfo(x.dtype).eps)
            error = float(jnp.max(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))) / jnp.max(jnp.abs(y)))
            assert error <= tolerance, f"{op.name}: {implementation} differs by {error:.1e} of the largest entry"


def best_tuning(op: Op, num_rounds: int) -> tuning.Tuning:
    """The fastest of the candidates, in interleaved timing."""
    functions = {}
    for candidate in tuning.candidates(op.tuned):
        with tuning.trial(op.tuned, candidate):
            functions[candidate] = op.make("triton")
            functions[candidate]()
    seconds = interleave(functions, num_rounds)
    return min(functions, key=lambda candidate: statistics.median(seconds[candidate]))


def _row(op: Op, implementation: Implementation, num_rounds: int, chosen: tuning.Tuning | None) -> str:
    negative, source = jax.jit(jnp.negative), jnp.ones(_COPY_BYTES // 8, jnp.float32)
    with tuning.trial(op.tuned, chosen):
        kernel = op.make(implementation)
        kernel()
    seconds = interleave({"kernel": kernel, "XLA": op.make("xla")}, num_rounds)
    # Timed separately: it would evict from the caches what the next one reads.
    seconds |= interleave({"copy": lambda: negative(source)}, num_rounds)
    shares = [op.num_bytes / a / (_COPY_BYTES / b) for a, b in zip(seconds["kernel"], seconds["copy"], strict=True)]
    blocks = "default" if chosen is None else f"{chosen.block_size}, {chosen.num_warps}"
    return f"| {op.name} | {ratio(seconds, 'kernel', 'XLA')} | {statistics.median(shares):.2f} | {blocks} |"


def _compiled(op: Callable[..., Any], implementation: Implementation, *arguments: Any) -> Callable[[], Any]:
    return partial(jax.jit(partial(op, implementation=implementation)), *arguments)


def _updates(
    rule: Sgd | AdamW, implementation: Implementation, params: Tree, g1: Tree, g2: Tree, **options: Any
) -> Callable[[], Any]:
    """A function that makes one more update in place at each call."""

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, g1: Tree, g2: Tree, step: jax.Array) -> Any:
        return blend_update(
            state[0], g1, g2, state[1], rule=rule, c1=0.2, c2=0.8, learning_rate=0.01, count=step,
            implementation=implementation, **options,
        )  # fmt: skip

    state = params, (jax.tree.map(jnp.zeros_like, params),) * rule.num_moments
    # A separate tree of zeros for each moment, because each is donated.
    state = jax.tree.map(jnp.copy, state)
    step = jnp.int32(0)

    def run() -> Any:
        nonlocal state
        new = update(state, g1, g2, step)
        state = new.params, new.moments
        return new

    return run


def _draw(shapes: Tree, seed: int, dtype: Any = jnp.float32) -> Tree:
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), max(1, len(leaves)))
    return structure.unflatten([jax.random.normal(k, x.shape, dtype) for k, x in zip(keys, leaves, strict=False)])


def _size(shapes: Tree) -> int:
    return sum(x.size for x in jax.tree.leaves(shapes))
