"""The benchmark of the kernels: it refuses wrong numbers, and prints its measurements."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gnp_kernels import bench
from gnp_kernels.tuning import Tuning, candidates, tunings

SHAPES = {"a": jax.ShapeDtypeStruct((64, 32), jnp.float32), "b": jax.ShapeDtypeStruct((7,), jnp.float32)}


def test_every_operation_is_checked_timed_and_reported():
    lines = list(bench.bench(SHAPES, "xla", num_rounds=2, tune=False))
    rows = [line.split(" | ") for line in lines if line.startswith("| ")][1:]
    assert [row[0].removeprefix("| ") for row in rows] == [op.name for op in bench.ops(SHAPES)]
    assert all(float(row[2]) > 0 for row in rows)
    assert "2 arrays, 2,055 elements" in lines[1]


def test_the_best_block_sizes_are_printed_as_tuning_has_them(monkeypatch):
    """For every operation, in lines that can replace the defaults."""
    ops = [op._replace(make=lambda implementation: lambda: jnp.ones(3)) for op in bench.ops(SHAPES)]
    monkeypatch.setattr(bench, "ops", lambda shapes: ops)
    monkeypatch.setattr(bench, "best_tuning", lambda op, num_rounds: candidates(op.tuned)[-1])
    lines = list(bench.bench(SHAPES, "triton", num_rounds=2, tune=True))
    printed = eval("{" + "".join(lines[-len(tunings()) :]) + "}", {"Tuning": Tuning})
    assert printed == {op: candidates(op)[-1] for op in tunings()}


def test_wrong_numbers_are_refused():
    """A kernel with an error of 1e-4 of its largest entry is not timed."""

    def make(implementation):
        return lambda: jnp.ones(3) * (1.0 if implementation == "xla" else 1.0001)

    with pytest.raises(AssertionError, match=r"wrong: triton differs by 1\.0e-04"):
        bench.check(bench.Op("wrong", "perturb", make, 12), "triton")


def test_an_update_goes_on_from_the_last():
    """Each timed update works in place on the result of the previous one, as in training."""
    (op,) = (op for op in bench.ops(SHAPES) if op.name == "sgd f32")
    update = op.make("xla")
    first = np.asarray(update().params["a"])
    assert not np.array_equal(first, update().params["a"])
