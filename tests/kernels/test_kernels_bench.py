"""The benchmark of the kernels: it refuses wrong numbers, and prints its measurements."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gnp_kernels import bench
from gnp_kernels.tuning import Tuning, candidates, tunings

pytestmark = pytest.mark.usefixtures("unoptimized")

SHAPES = {"a": jax.ShapeDtypeStruct((64, 32), jnp.float32), "b": jax.ShapeDtypeStruct((7,), jnp.float32)}


def constant(value, tuned="perturb"):
    """An operation whose Triton kernel is wrong by `value`."""

    def body(state, read, implementation):
        return read * (1.0 if implementation == "xla" else value)

    ones = partial(jnp.ones, 3)
    return bench.Operation("constant", tuned, 12, body, ones, ones)


@pytest.mark.slow
def test_every_operation_is_checked_timed_and_reported():
    lines = list(bench.bench(SHAPES, "xla", num_rounds=2, tune=False))
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == [operation.name for operation in bench.operations(SHAPES)]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows)
    assert "2 arrays, 2,055 elements" in lines[1]


def test_the_best_block_sizes_are_printed_as_tuning_has_them(monkeypatch):
    """For every operation, in lines that can replace the defaults."""
    operations = [constant(1.0, tuned) for tuned in tunings()]
    monkeypatch.setattr(bench, "operations", lambda shapes: operations)
    monkeypatch.setattr(bench, "best_tuning", lambda operation, num_rounds: candidates(operation.tuned)[-1])
    lines = list(bench.bench(SHAPES, "triton", num_rounds=2, tune=True))
    printed = eval("{" + "".join(lines[-len(tunings()) :]) + "}", {"Tuning": Tuning})
    assert printed == {op: candidates(op)[-1] for op in tunings()}


def test_wrong_numbers_are_refused():
    """A kernel with an error of 1e-4 of its largest entry is not timed."""
    with pytest.raises(AssertionError, match=r"constant: triton differs by 1\.0e-04"):
        bench.check(constant(1.0001), "triton")
    bench.check(constant(1.000001), "triton")


@pytest.mark.parametrize("operation", bench.operations(SHAPES), ids=lambda operation: operation.name)
def test_a_loop_repeats_an_operation_on_its_own_result(operation):
    """As in training, an update goes on from the last one; a program of three iterations makes three."""
    run = bench.runner(operation, bench.program(operation, "xla", 1).compile())
    # A copy, because the next call reuses the memory.
    results = [jax.tree.map(np.array, run()) for _ in range(3)]
    is_update = operation.tuned == "blend_update"
    assert is_update != np.array_equal(*(jax.tree.leaves(result)[0] for result in results[:2]))
    whole = bench.runner(operation, bench.program(operation, "xla", 3).compile())()
    for x, y in zip(jax.tree.leaves(results[-1]), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(x.astype(np.float32), np.asarray(y, np.float32), rtol=1e-2, atol=1e-6)


def test_the_time_of_a_call_is_not_that_of_the_operation():
    """A call takes 5 ms and an iteration 1 ms, so a program of one takes 6 ms, and one of eleven 16 ms."""
    seconds = bench.per_operation({"a": [0.016, 0.026]}, {"a": 0.006}, {"a": 11})
    np.testing.assert_allclose(seconds["a"], [0.001, 0.002])


def test_a_device_that_is_not_a_cpu_is_timed_in_loops(monkeypatch):
    """So long that a call is a small part of it."""
    monkeypatch.setattr(bench, "platform", lambda: "gpu")
    seconds = bench.seconds_of({"copy": (bench.copy(), "xla")}, 2)
    assert all(second > 0 for second in seconds["copy"])
