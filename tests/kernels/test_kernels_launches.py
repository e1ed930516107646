"""The training step compiled for 8 H100 by XLA: few launches between its passes, and no more bytes than XLA's.

`test_kernels_triton_xla.py` counts those of the kernels alone, in a third of the time.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "count_launches.py"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(
        not importlib.util.find_spec("jax_cuda13_plugin") or not importlib.util.find_spec("jax_triton"),
        reason="XLA's and Triton's compilers for GPUs are not installed: make gpu-compiler",
    ),
]


def launches(*names):
    """The launches of the step, for these variants of `benchmarks.kernels_gpu`."""
    # Programs for absent devices cannot be read from the cache.
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, SCRIPT, *names], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def counts():
    return launches("XLA, float32", "Triton, float32")


def test_a_dozen_launches_take_the_place_of_hundreds(counts):
    """They do not grow with the number of arrays, as XLA's do: 13 for 31 arrays, as for the 151 of the whole ViT-B."""
    assert counts["Triton, float32"]["num_launches"] <= 16
    assert counts["XLA, float32"]["num_launches"] > 100


def test_no_more_bytes_are_moved(counts):
    assert counts["Triton, float32"]["num_bytes"] <= counts["XLA, float32"]["num_bytes"]


def test_in_bfloat16_there_are_as_few_launches_and_fewer_bytes(counts):
    (found,) = launches("Triton, bfloat16").values()
    assert found["num_launches"] <= 16
    assert found["num_bytes"] <= 0.75 * counts["XLA, float32"]["num_bytes"]


def test_changes_of_layout_do_not_eat_the_gain(counts):
    """A kernel cannot include transpositions before and after it, as XLA's loops can."""
    ours, base = counts["Triton, float32"], counts["XLA, float32"]
    assert ours["num_bytes"] + ours["num_layout_bytes"] <= 1.02 * (base["num_bytes"] + base["num_layout_bytes"])
    assert ours["num_all_launches"] < base["num_all_launches"]
