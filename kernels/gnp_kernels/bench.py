"""Checks the kernels on the current device, times them against XLA and a copy, and finds the best block sizes.

An operation on a network's parameters takes a GPU less time than Python takes to call it. So each is repeated in a loop
inside one program, and the time of one call of a program without repetition is subtracted.
"""

import datetime
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gnp_kernels import tuning
from gnp_kernels.blend_update.api import AdamW, Sgd, blend_update
from gnp_kernels.dispatch import Implementation, platform
from gnp_kernels.perturb.api import perturb
from gnp_kernels.squared_norm.api import dots, squared_norm
from gnp_kernels.timing import interleave, ratio
from gnp_kernels.trees import Tree

_COPY_BYTES = 1 << 28
_LOOP_S, _MAX_LOOPS = 0.2, 200
_TOLERANCE = 1e-5
"""Relative to the largest entry of a result: for sums in another order; rounding to bfloat16 may differ by one unit."""


class Operation(NamedTuple):
    """One operation on one tree."""

    name: str
    tuned: str
    """The operation whose block size it uses."""
    num_bytes: int
    """Bytes that it reads and writes."""
    body: Callable[[Tree, Tree, Implementation], Tree]
    """`body(state, read, implementation)`: the new state."""
    state: Callable[[], Tree]
    read: Callable[[], Tree]


def bench(shapes: Tree, implementation: Implementation, num_rounds: int, *, tune: bool) -> Iterator[str]:
    """Lines of a Markdown report on all operations over a tree of arrays of the given shapes.

    Raises:
        AssertionError: an implementation's numbers differ from the reference's.
    """
    device = jax.devices()[0]
    yield f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC, {device.device_kind}, JAX {jax.__version__}."
    yield f"{len(jax.tree.leaves(shapes))} arrays, {_size(shapes):,} elements; medians over {num_rounds} rounds."
    yield ""
    yield f"| operation | {implementation}, us | XLA, us | {implementation} / XLA | share of copy | block size, warps |"
    yield "|---|---|---|---|---|---|"
    copy_bytes_per_s = _COPY_BYTES / statistics.median(seconds_of({"copy": (copy(), "xla")}, num_rounds)["copy"])
    chosen: dict[str, tuning.Tuning] = {}
    for operation in operations(shapes):
        check(operation, implementation)
        if tune and implementation == "triton" and operation.tuned not in chosen:
            chosen[operation.tuned] = best_tuning(operation, num_rounds)
        best = chosen.get(operation.tuned)
        with tuning.trial(operation.tuned, best):
            timed: dict[str, tuple[Operation, Implementation]] = {
                implementation: (operation, implementation),
                "XLA": (operation, "xla"),
            }
            seconds = seconds_of(timed, num_rounds)
        yield _row(operation, seconds, copy_bytes_per_s, "default" if best is None else _words(best))
    if chosen:
        yield ""
        yield "The best block sizes, as `_DEFAULTS` of gnp_kernels/tuning.py holds them:"
        yield ""
        for name, best in chosen.items():
            yield f'    "{name}": Tuning({_words(best)}),'


def operations(shapes: Tree) -> list[Operation]:
    """All operations, in float32 and with bfloat16 gradients and copies."""
    n, half, zero = _size(shapes), jnp.bfloat16, partial(jnp.zeros, ())
    w, g1, g2 = (partial(_draw, shapes, seed) for seed in range(3))

    def update(name: str, rule: Sgd | AdamW, num_bytes: int, dtype: Any) -> Operation:
        copy_dtype = half if dtype == half else None
        body = partial(_updated, rule=rule, copy_dtype=copy_dtype)
        state = partial(_update_state, shapes, rule.num_moments, copy_dtype)
        return Operation(name, "blend_update", num_bytes * n, body, state, lambda: (g1(dtype), g2(dtype)))

    return [
        Operation("squared_norm f32", "squared_norm", 4 * n, _norm, zero, g1),
        Operation("squared_norm bf16", "squared_norm", 2 * n, _norm, zero, lambda: g1(half)),
        Operation("dots f32", "dots", 8 * n, _dots, zero, lambda: (g1(), g2())),
        Operation("dots bf16", "dots", 4 * n, _dots, zero, lambda: (g1(half), g2(half))),
        Operation("perturb f32", "perturb", 12 * n, _moved, w, lambda: (w(), g1())),
        Operation("perturb bf16", "perturb", 8 * n, _moved, lambda: w(half), lambda: (w(), g1(half))),
        update("sgd f32", Sgd(0.9, True, 1e-4), 24, jnp.float32),
        update("sgd bf16", Sgd(0.9, True, 1e-4), 22, half),
        update("adamw f32", AdamW(), 32, jnp.float32),
        update("adamw bf16", AdamW(), 30, half),
    ]


def copy() -> Operation:
    """Reads and writes an array that fits in no cache."""
    state = partial(jnp.ones, _COPY_BYTES // 8, jnp.float32)
    return Operation("copy", "", _COPY_BYTES, lambda x, read, implementation: -x, state, lambda: ())


def program(operation: Operation, implementation: Implementation, num_loops: int) -> Any:
    """`operation`, repeated on its own result, as one lowered program of its state, which is donated, and of `read`."""

    def loop(state: Tree, read: Tree) -> Tree:
        def iterate(_: Any, state: Tree) -> Tree:
            # Otherwise XLA moves what only reads out of the loop, as it does on a CPU all the same.
            state, fresh = jax.lax.optimization_barrier((state, read))
            return operation.body(state, fresh, implementation)

        return jax.lax.fori_loop(0, num_loops, iterate, state)

    shapes = jax.eval_shape(operation.state), jax.eval_shape(operation.read)
    return jax.jit(loop, donate_argnums=0).lower(*shapes)


def runner(operation: Operation, compiled: Any) -> Callable[[], Tree]:
    """A function that continues from its last state."""
    state, read = operation.state(), operation.read()

    def run() -> Tree:
        nonlocal state
        state = compiled(state, read)
        return state

    return run


def seconds_of[Name](
    timed: Mapping[Name, tuple[Operation, Implementation]], num_rounds: int
) -> dict[Name, list[float]]:
    """Seconds of each operation in each round, interleaved.

    On a CPU a call costs little beside its work, and XLA would move what only reads out of the loop.
    """
    once = {name: runner(what[0], program(*what, 1).compile()) for name, what in timed.items()}
    if platform() == "cpu":
        return interleave(once, num_rounds)
    call_s = {name: statistics.median(rounds) for name, rounds in interleave(once, num_rounds).items()}
    num_loops = {name: max(2, min(_MAX_LOOPS, round(_LOOP_S / call_s[name]))) for name in timed}
    loops = {name: runner(what[0], program(*what, num_loops[name]).compile()) for name, what in timed.items()}
    return per_operation(interleave(loops, num_rounds), call_s, num_loops)


def per_operation[Name](
    seconds: Mapping[Name, Sequence[float]], call_s: Mapping[Name, float], num_loops: Mapping[Name, int]
) -> dict[Name, list[float]]:
    """Seconds of one operation, from those of loops and of a call with one iteration."""
    return {name: [(s - call_s[name]) / (num_loops[name] - 1) for s in seconds[name]] for name in seconds}


def check(operation: Operation, implementation: Implementation) -> None:
    """Raises AssertionError if the results of an implementation differ from those of the reference."""
    got, expected = (runner(operation, program(operation, i, 1).compile())() for i in (implementation, "xla"))
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        if x.size and x.dtype != jnp.int32:
            tolerance = _TOLERANCE if x.dtype == jnp.float32 else float(jnp.finfo(x.dtype).eps)
            error = float(jnp.max(jnp.abs(x.astype(jnp.float32) - y.astype(jnp.float32))) / jnp.max(jnp.abs(y)))
            assert error <= tolerance, f"{operation.name}: {implementation} differs by {error:.1e} of the largest entry"


def best_tuning(operation: Operation, num_rounds: int) -> tuning.Tuning:
    """The fastest of the candidates, in interleaved timing."""
    functions = {}
    for candidate in tuning.candidates(operation.tuned):
        with tuning.trial(operation.tuned, candidate):
            functions[candidate] = runner(operation, program(operation, "triton", _MAX_LOOPS).compile())
    seconds = interleave(functions, num_rounds)
    return min(functions, key=lambda candidate: statistics.median(seconds[candidate]))


def _row(operation: Operation, seconds: Mapping[str, list[float]], copy_bytes_per_s: float, blocks: str) -> str:
    ours, xla = seconds
    times = " | ".join(f"{statistics.median(rounds) * 1e6:.0f}" for rounds in seconds.values())
    share = operation.num_bytes / statistics.median(seconds[ours]) / copy_bytes_per_s
    return f"| {operation.name} | {times} | {ratio(seconds, ours, xla)} | {share:.2f} | {blocks} |"


def _words(best: tuning.Tuning) -> str:
    return f"{best.block_size}, {best.num_warps}"


def _norm(state: Tree, read: Tree, implementation: Implementation) -> Tree:
    return squared_norm(read, implementation=implementation)


def _dots(state: Tree, read: Tree, implementation: Implementation) -> Tree:
    return jnp.sum(jnp.stack(dots(*read, implementation=implementation)))


def _moved(state: Tree, read: Tree, implementation: Implementation) -> Tree:
    params, g1 = read
    return perturb(params, g1, jnp.float32(0.05), dtype=jax.tree.leaves(state)[0].dtype, implementation=implementation)


def _updated(state: Tree, read: Tree, implementation: Implementation, rule: Any, copy_dtype: Any) -> Tree:
    (params, moments, _, count), (g1, g2) = state, read
    new = blend_update(
        params, g1, g2, moments, rule=rule, c1=0.2, c2=0.8, learning_rate=0.01, count=count, copy_dtype=copy_dtype,
        implementation=implementation,
    )  # fmt: skip
    return new.params, new.moments, new.copy, count + 1


def _update_state(shapes: Tree, num_moments: int, copy_dtype: Any) -> Tree:
    """Parameters, moments, copy and count; every array is of its own, because all are donated."""
    moments = tuple(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes) for _ in range(num_moments))
    return _draw(shapes, 0), moments, None if copy_dtype is None else _draw(shapes, 0, copy_dtype), jnp.int32(0)


def _draw(shapes: Tree, seed: int, dtype: Any = jnp.float32) -> Tree:
    leaves, structure = jax.tree.flatten(shapes)
    keys = jax.random.split(jax.random.key(seed), max(1, len(leaves)))
    return structure.unflatten([jax.random.normal(k, x.shape, dtype) for k, x in zip(keys, leaves, strict=False)])


def _size(shapes: Tree) -> int:
    return sum(x.size for x in jax.tree.leaves(shapes))
