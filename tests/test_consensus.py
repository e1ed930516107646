"""All processes continue with the same values, and the coordination service does not fill up with them."""

import re
from pathlib import Path

import pytest
from launcher import Job

from gnp_scale.run.consensus import all_gather, broadcast

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_one_process_agrees_with_itself():
    assert all_gather(None) == [None]
    assert broadcast({1: 2}) == {1: 2}


@pytest.mark.slow
def test_values_are_those_of_the_round_and_are_deleted_later(tmp_path):
    variables = {"PYTHONPATH": str(Path(__file__).parent)}
    job = Job(tmp_path, [], num_processes=2, entry=("consensus_job",), variables=variables)
    assert job.exit_codes() == [0, 0], job.output()
    for most, last in re.findall(r"at most (\d+) keys, (\d+) at the end", job.output()):
        assert int(most) < 210
        assert int(last) < 10
    assert job.output().count("at the end") == 2
