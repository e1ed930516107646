"""All processes continue with the same values, and the coordination service does not fill up with them."""

import math
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from launcher import Job

from benchmarks.hosts import connected, gather, most_gets
from gnp_scale.run.consensus import all_gather, broadcast

pytestmark = pytest.mark.usefixtures("unoptimized")


def test_one_process_agrees_with_itself():
    assert all_gather(None) == [None]
    assert broadcast({1: 2}) == {1: 2}


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
