"""Checkpoints of several processes: if one of them cannot read or write a checkpoint, none uses it."""

import re
from pathlib import Path

import pytest
from launcher import Job

from gnp_scale.checkpoint.store import Store

pytestmark = pytest.mark.usefixtures("unoptimized")

TESTS_DIR = str(Path(__file__).parent)


def run(log_dir, run_dir, *options, num_processes=2):
    arguments = [str(run_dir), *options]
    job = Job(log_dir, arguments, num_processes, entry=("checkpoint_job",), variables={"PYTHONPATH": TESTS_DIR})
    assert job.exit_codes() == [0] * num_processes, job.output()
    return job.output()


@pytest.mark.slow
def test_all_processes_go_on_from_the_same_whole_checkpoint(tmp_path, monkeypatch):
    """They also find the programs that process 0 has compiled."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "programs"))
    run_dir = tmp_path / "run"
    run(tmp_path / "first", run_dir)
    # The largest file belongs to one process: the other reads all of its own shards.
    parts = sorted((run_dir / "checkpoints" / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    parts[-1].write_bytes(parts[-1].read_bytes()[:100])
    output = run(tmp_path / "second", run_dir)
    assert output.count("restored 1: equal") == 2
    assert output.count("the checkpoint of step 2 is damaged (") == 1
    assert "set aside as 2.damaged" in output
    assert len(re.findall("with [1-9][0-9]* programs from the cache", output)) == 2
    assert Store(run_dir).steps() == [1, 2, 3]
    assert "restored 3: equal" in run(tmp_path / "third", run_dir, num_processes=1)


@pytest.mark.slow
def test_a_write_that_fails_in_one_process_has_failed_in_all_and_is_tried_again(tmp_path):
    run_dir = tmp_path / "run"
    output = run(tmp_path / "first", run_dir, "--full-rank", "1")
    assert output.count("the checkpoint of step 1 could not be written (") == 1
    assert "File too large" in output
    assert "in process 1): attempt 2 of 4" in output
    assert output.count("restored 2: equal") == 0
    assert run(tmp_path / "second", run_dir).count("restored 2: equal") == 2
