"""All processes continue with the same values, and the coordination service does not fill up with them."""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launcher import Job

from benchmarks.hosts import connected, gather, most_gets
from gnp_scale.run import consensus
from gnp_scale.run.consensus import all_gather, broadcast

WAITS = re.compile(r"step \d+: (\d+) values, (\d+) barriers")
"""What `agreements_job.py` prints."""

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_one_process_agrees_with_itself():
    assert all_gather(None) == [None]
    assert broadcast({1: 2}) == {1: 2}


def test_the_first_error_is_named_with_its_process_beside_all_values(monkeypatch):
    assert consensus.agree("a {} disk", 1) == ("a {} disk", [1])
    others = [[None, 2], ["no space", 3], ["no network", 4]]
    monkeypatch.setattr(consensus, "all_gather", lambda mine: [list(mine), *others])
    assert consensus.agree(None, 1) == ("no space, in process 2", [1, 2, 3, 4])
    assert consensus.first_error("a {} disk") == "a {} disk, in process 0"


@pytest.mark.parametrize("num_hosts", [2, 8, 9, 65])
def test_all_hosts_get_all_values_in_order_and_none_waits_for_many(num_hosts):
    """Real clients of a real service, with numbers of hosts that fill the tree and that do not."""
    with connected(num_hosts) as clients, ThreadPoolExecutor(num_hosts) as pool:
        found = list(pool.map(lambda rank: gather(clients, rank, "round"), range(num_hosts)))
    assert found == [list(range(num_hosts))] * num_hosts
    assert most_gets(num_hosts) <= 7 * math.ceil(math.log(num_hosts, 8))


@pytest.mark.slow
def test_values_are_those_of_the_round_and_are_deleted_later(tmp_path):
    variables = {"PYTHONPATH": str(Path(__file__).parent)}
    job = Job(tmp_path, [], num_processes=2, entry=("consensus_job",), variables=variables)
    assert job.exit_codes() == [0, 0], job.output()
    for most, last in re.findall(r"at most (\d+) keys, (\d+) at the end", job.output()):
        assert int(most) < 210
        assert int(last) < 10
    assert job.output().count("at the end") == 2


@pytest.mark.slow
def test_no_step_waits_for_other_processes_unless_it_is_logged_or_saved(tmp_path):
    """Four of 12 steps are logged and three saved: others, which are dispatched ahead of the devices, ask nobody."""
    options = ["--train.log-every-steps", "3", "--train.eval-every-steps", "100"]
    options += ["--checkpoint.every-steps", "5", "--run-dir", str(tmp_path / "run")]
    variables = {"PYTHONPATH": str(Path(__file__).parent)}
    arguments = ["train", "tests/stuck.py:small", *options]
    job = Job(tmp_path, arguments, 2, 4, ("agreements_job",), variables)
    assert job.exit_codes() == [0, 0], job.output()
    for rank, log in enumerate(job.logs):
        gather, broadcast = 2 - rank, 1
        waits = [(int(values), int(barriers)) for values, barriers in re.findall(WAITS, log.read_text())]
        start, *num_values = (values for values, _ in waits)
        assert start == 5 * gather + 7 * broadcast
        assert len([number for number in num_values if number]) <= 4 + 3
        # A save that goes on is looked at in each logged step.
        assert sum(num_values) <= 4 * (broadcast + gather) + 3 * gather
        assert sum(barriers for _, barriers in waits) <= 2 * 5, "of Orbax, behind training"
