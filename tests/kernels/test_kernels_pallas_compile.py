"""The Pallas kernels, compiled by the real TPU compiler: for every chip, in place, and memory-bound."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.tpu_estimates import CHIPS

ROOT = Path(__file__).parents[2]


USUAL_CHIPS = ("v4", "v5p")
"""The one with the least memory for kernels, and the one whose cycles are compared."""


@pytest.fixture(
    scope="module", params=[pytest.param(chip, marks=[pytest.mark.long] * (chip not in USUAL_CHIPS)) for chip in CHIPS]
)
def compiled(request, tmp_path_factory):
    """The output of `tpu_compiled.py` for one chip, by program."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs the TPU compiler: make tpu-compiler")
    dump = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, str(Path(__file__).with_name("tpu_compiled.py")), request.param, str(dump)]
    env = os.environ | CHIPS[request.param].environment(dump) | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = map(json.loads, done.stdout.splitlines())
    return {line["program"]: line for line in lines}


@pytest.mark.slow
def test_all_leaves_share_one_call_of_each_kernel(compiled):
    assert compiled["perturb"]["kernels"] == ["gnp_squared_norm", "gnp_perturb"]
    assert compiled["update"]["kernels"] == ["gnp_dots", "gnp_blend_update"]


@pytest.mark.slow
def test_no_leaf_is_copied_or_relaid(compiled):
    """The views are bitcasts, parameters and moments are updated in place, and XLA copies nothing to VMEM before."""
    assert compiled["perturb"]["copies"] == []
    assert compiled["update"]["copies"] == []


@pytest.mark.slow
def test_memory_takes_longer_than_arithmetic_in_every_block_and_no_register_is_spilled(compiled):
    for program in ("perturb", "update"):
        assert 0 < compiled[program]["worst_block"] < 1
        assert compiled[program]["num_vector_spills"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("compiled", ["v5p"], indirect=True)
def test_cycles_are_at_most_065_of_those_of_xla(compiled):
    """If VMEM holds all of this small tree, as on other chips, XLA's estimate omits the copies to VMEM and back."""
    assert compiled["perturb"]["ratio"] <= 0.65
    assert compiled["update"]["ratio"] <= 0.65


@pytest.mark.slow
def test_kernels_stand_in_the_program_of_a_mesh_with_sharded_parameters(compiled):
    """Inside `shard_map`, which checks the axes over which results vary."""
    names = compiled["shards"]["kernels"]
    assert {name: names.count(name) for name in names} == {
        "gnp_squared_norm": 2,
        "gnp_perturb": 2,
        "gnp_dots": 1,
        "gnp_blend_update": 2,
    }
