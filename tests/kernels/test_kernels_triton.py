"""The Triton back end: the plan of its launches, its tuning, and its numbers in Triton's interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from gnp_kernels import tuning
from gnp_kernels.tuning import Tuning

triton_leaves = pytest.importorskip(
    "gnp_kernels.triton_leaves", reason="needs the GPU compilers: make gpu-compiler", exc_type=ModuleNotFoundError
)


@pytest.mark.parametrize(
    "cases", [pytest.param("not long", marks=pytest.mark.slow), pytest.param("long", marks=pytest.mark.long)]
)
def test_interpreted_kernels_agree_with_the_reference(cases):
    """In a separate process: the environment at import decides whether kernels are compiled or interpreted."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", cases, "triton_interpreted.py"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
    assert "skipped" not in run.stdout


def rows(*shapes, num_arrays=2, dtype=jnp.float32):
    return [(jax.ShapeDtypeStruct(shape, dtype),) * num_arrays for shape in shapes]


def plan(rows):
    return triton_leaves.launches(rows, range(len(rows)), [1.0] * len(rows), block_size=1024)


def test_a_launch_knows_where_each_leaf_begins():
    (launch,) = plan(rows((8, 256), (0,), (1032,), ()))
    assert launch.places == (0, 2, 3)
    assert launch.table == ((0, 2048, 0, 1.0), (2, 1032, 2, 1.0), (4, 1, 3, 1.0))
    assert (launch.num_programs, launch.is_ragged) == (5, True)


def test_leaves_of_2_to_the_31_elements_and_more_are_planned_without_overflow():
    (launch,) = plan(rows((2**16, 2**17), (8,)))
    assert launch.table[1] == (2**23, 8, 1, 1.0)
    assert launch.num_programs == 2**23 + 1


@pytest.mark.parametrize("num_arrays", [1, 2, 3, 5, 6])
def test_the_parameters_of_a_launch_fit_into_4000_bytes(num_arrays):
    """Pointers of the leaves, up to 2 of scalars and parts, and 2 of scratch memory that Triton adds."""
    launches = plan(rows(*[(8,)] * 1000, num_arrays=num_arrays))
    assert sum((launch.places for launch in launches), ()) == tuple(range(1000))
    assert max(len(launch.places) for launch in launches) * num_arrays + 4 <= 4000 // 8


def test_leaves_of_other_types_are_launched_apart():
    first, second = plan([*rows((8,)), *rows((8,), dtype=jnp.bfloat16), *rows((16,))])
    assert (first.places, second.places) == ((0, 2), (1,))


def test_a_trial_goes_before_the_default_and_ends():
    default = tuning.tuning_of("perturb")
    with tuning.trial("perturb", Tuning(4096, 16)), tuning.trial("dots", None):
        assert tuning.tuning_of("perturb") == Tuning(4096, 16)
    assert tuning.tuning_of("perturb") == default != Tuning(4096, 16)


def test_the_default_is_the_first_candidate():
    candidates = tuning.candidates("blend_update")
    assert candidates[0] == tuning.tuning_of("blend_update")
    assert len(set(candidates)) == len(candidates) > 8
