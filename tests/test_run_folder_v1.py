"""This version reads, evaluates, fingerprints and resumes a run folder made by version 0.1.0. ¶

`fixtures/run_folder_v1/run.tar.gz` is the folder of a run of two CPU devices that was stopped after step 25 of 60:

    JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=2 gnp-scale train tests/fixtures/run_folder_v1/recipe.py:small --run-dir run

and SIGTERM once 24 steps were logged; without its lock and its event files, and with a relative path in the markers of
Orbax. It is never made anew: what a later version writes gets a fixture of its own. The numbers below are what version
0.1.0 said of it.
"""

import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from launcher import Job, run

from gnp_scale import recipe
from gnp_scale.checkpoint import fingerprint
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.run.run_dir import changes, stored_config
from gnp_scale.run.status import print_status

FIXTURE = Path(__file__).parent / "fixtures" / "run_folder_v1"
RECIPE = f"{FIXTURE / 'recipe.py'}:small"
FINGERPRINTS = {
    15: "d11db90735db10cb6dab1f614a1c63e62bf2928a995b1ed69a324c85892e2e4d",
    20: "91bf8e173d12ca2e166bc460c9ff14ed73d6a08de91e456781d28b516827bc24",
    25: "c50f052203f16ba528e5ba69d7067c6706ccd0037a6ac089f1d3e3e9a50617b7",
}
SCORES = {"eval/loss": 2.2035388946533203, "eval/top1": 97 / 360, "eval/top5": 269 / 360}
LOSSES = {26: 2.2368323802948, 27: 2.2056570053100586, 60: 2.1949360370635986}


@pytest.fixture
def run_dir(tmp_path):
    with tarfile.open(FIXTURE / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_its_configuration_is_that_of_its_recipe(run_dir):
    """Each newer option has a default that keeps the behaviour of 0.1.0."""
    assert changes(stored_config(run_dir), recipe.load(RECIPE)) == []


@pytest.mark.parametrize("step", FINGERPRINTS)
def test_its_states_are_those_that_were_saved(step, run_dir):
    assert fingerprint(run_dir, step) == (step, FINGERPRINTS[step])


def test_its_state_and_time_are_shown(run_dir, capsys):
    print_status(run_dir)
    shown = capsys.readouterr().out
    for text in ("preempted, saved", "25 of 60", "2.178 at step 25", "step 25"):
        assert text in shown


@pytest.mark.slow
def test_it_is_evaluated(run_dir, tmp_path):
    scores = json.loads(run(tmp_path / "log", "eval", str(run_dir), num_devices=2).splitlines()[-1])
    assert scores.pop("step") == 25
    assert scores == pytest.approx(SCORES, rel=1e-5)


@pytest.mark.slow
def test_a_fingerprint_needs_no_accelerator(run_dir, tmp_path):
    """It takes no accelerator from a run: no other platform is started."""
    job = Job(tmp_path / "log", ["fingerprint", str(run_dir)], variables={"JAX_PLATFORMS": "cuda"})
    assert job.exit_codes() == [0], job.output()
    assert job.output().split() == [FINGERPRINTS[25], "step", "25"]


@pytest.mark.slow
def test_it_goes_on_to_its_end(run_dir, tmp_path):
    """With the same examples: others change the third digit of a loss. Momentum lets rounding grow slowly."""
    said = run(tmp_path / "log", "train", RECIPE, "--run-dir", str(run_dir), num_devices=2)
    # Its checkpoint does not record everything that affects bitwise equality.
    assert re.search("going on after step 25, (saved with other versions|on the same mesh: .*, if the values)", said)
    rows = {row["step"]: row for row in read_metrics(run_dir)}
    assert sorted(rows) == list(range(1, 61))
    for step, rtol in {26: 1e-5, 27: 1e-5, 60: 1e-3}.items():
        np.testing.assert_allclose(rows[step]["train/loss"], LOSSES[step], rtol=rtol)
