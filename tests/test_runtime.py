"""Processes that do not find each other, or do not agree, end soon, with one line and the right exit code."""

import os
import re
import socket
import subprocess
import sys
import time

import jax
import pytest
from jax._src import cloud_tpu_init, distributed
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster
from launcher import Job

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.run import processes
from gnp_scale.run.budgets import VARIABLE

pytestmark = pytest.mark.usefixtures("unoptimized")

JOIN_S = 5


@pytest.fixture
def address():
    """Of this machine, at a port where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture(autouse=True)
def same_settings(monkeypatch):
    """Starting sets the cache; the number of devices cannot change in this process."""
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(jax.device_count()))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def train_alone(run_dir, address, rank):
    """Exit code, lines and seconds of one of two processes, when the other one never starts."""
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(rank),
        VARIABLE: f"join={JOIN_S}",
    }
    command = [sys.executable, "-m", "gnp_scale.cli", "train", "tests/stuck.py:small", "--run-dir", str(run_dir)]
    began_s = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stderr.splitlines(), time.monotonic() - began_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "host", "expected"),
    [
        (1, None, "no coordinator answers at 127.0.0.1:"),
        pytest.param(
            *(1, "no-such-host.invalid:1234", "no coordinator answers at no-such-host.invalid:1234"),
            marks=pytest.mark.long,
        ),
        (0, None, "answers, but some of the processes are missing"),
    ],
    ids=["nobody listens", "no such host", "missing rank"],
)
def test_processes_that_do_not_find_each_other_give_up(tmp_path, address, rank, host, expected):
    code, lines, seconds = train_alone(tmp_path / "run", host or address, rank)
    told = [line for line in lines if line.startswith("gnp-scale:")]
    assert code == Exit.HUNG, lines
    assert len(told) == 1, lines
    assert re.match(f"gnp-scale: not joined after {JOIN_S} s: ", told[0])
    assert expected in told[0]
    assert seconds < JOIN_S + 60
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "write it as host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:http"}, "write it as host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "", "JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is not set"),
        ({"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:80", "JAX_NUM_PROCESSES": "2"}, "set both to numbers"),
        (
            {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:80", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "2"},
            "count them from 0",
        ),
    ],
)
def test_an_environment_that_cannot_be_right_is_told_at_once(monkeypatch, environment, expected):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=expected):
        processes.start()


@pytest.mark.parametrize("environment", [{"JAX_COORDINATOR_ADDRESS": ""}, {"JAX_NUM_PROCESSES": "1"}])
def test_what_names_no_others_is_one_process(monkeypatch, joins, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processes.start()
    assert joins == []


@pytest.fixture
def joins(monkeypatch):
    """The arguments that `jax.distributed.initialize` would have got."""
    calls = []
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


@pytest.mark.parametrize("num_hosts", [1, 4])
def test_a_tpu_pod_that_is_not_of_gke_is_joined(monkeypatch, joins, num_hosts):
    """The metadata server of a TPU VM lists the hosts; a single host has nobody to join."""
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    monkeypatch.setattr(cloud_tpu_init, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(GceTpuCluster, "is_env_present", classmethod(lambda cls: True))
    hosts = [f"10.0.0.{n}" for n in range(num_hosts)]
    monkeypatch.setattr(GceTpuCluster, "_get_worker_list_in_slice", staticmethod(lambda: hosts))
    monkeypatch.setattr(GceTpuCluster, "_get_num_slices", staticmethod(lambda: 1))
    processes.start()
    assert len(joins) == (num_hosts > 1)


@pytest.mark.parametrize(("variable", "value"), [("SLURM_STEP_NUM_TASKS", "2"), ("OMPI_COMM_WORLD_SIZE", "2")])
def test_a_launcher_of_several_processes_is_joined(monkeypatch, joins, variable, value):
    processes.start()
    assert joins == []
    monkeypatch.setenv(variable, value)
    processes.start()
    assert len(joins) == 1


def test_one_process_leaves_with_its_code():
    assert distributed.global_state.client is None
    assert processes.leave(Exit.DIVERGED) == Exit.DIVERGED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("version", r"process 1 has devices: \d, gnp-scale 9.9,"),
        pytest.param("budgets", r"process 1 has .*, GNP_SCALE_BUDGETS_S=train=60 on ", marks=pytest.mark.long),
        ("seed", r"process 1 has train.seed 1 on \S+, but process 0 has train.seed 0 on \S+: start all with the same"),
        pytest.param(
            "many",
            r"process 1 has train.num_steps 2001, train.seed 1, train.log_every_steps 11 and 1 more on \S+, but "
            r"process 0 has train.num_steps 2000, train.seed 0, train.log_every_steps 10 and 1 more on ",
            marks=pytest.mark.long,
        ),
    ],
)
def test_processes_that_do_not_agree_end_before_anything_is_compiled(tmp_path, monkeypatch, what, expected):
    monkeypatch.setenv("GNP_SCALE_TEST_DISAGREE", what)
    job = Job(tmp_path, ["train", "tests/disagree.py:small", "--run-dir", str(tmp_path / "run")], num_processes=2)
    assert job.exit_codes() == [Exit.WRONG_CONFIG, Exit.WRONG_CONFIG], job.output()
    for log in job.logs:
        (line,) = [line for line in log.read_text().splitlines() if line.startswith("gnp-scale:")]
        assert re.search(expected, line)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_different_numbers_of_devices_end_before_they_train(tmp_path):
    """They would train until their first save."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nos.environ['JAX_NUM_CPU_DEVICES'] = '13'[int(os.environ['JAX_PROCESS_ID'])]\n"
    )
    command = ["train", "tests/stuck.py:small", "--run-dir", str(tmp_path / "run")]
    job = Job(tmp_path, command, num_processes=2, variables={"PYTHONPATH": str(tmp_path)})
    assert job.exit_codes() == [Exit.WRONG_CONFIG, Exit.WRONG_CONFIG], job.output()
    for log in job.logs:
        (line,) = [line for line in log.read_text().splitlines() if line.startswith("gnp-scale:")]
        assert re.search(
            "process 1 has devices: 3, .*, but process 0 has devices: 1, .*: start all with the same", line
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_with_different_run_folders_end_before_they_train(tmp_path, monkeypatch):
    """If each had its own disk, each disk would have half of the files."""
    monkeypatch.setenv("GNP_SCALE_TEST_DISAGREE", str(tmp_path))
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    job = Job(tmp_path, ["train", "tests/disagree.py:small", "--run-dir", "run"], num_processes=2)
    assert job.exit_codes() == [Exit.WRONG_CONFIG, Exit.WRONG_CONFIG], job.output()
    for log in job.logs:
        (line,) = [line for line in log.read_text().splitlines() if line.startswith("gnp-scale:")]
        assert re.search(rf"process 1 has another run folder, {tmp_path}/1/run on \S+, than process 0, ", line)
    assert not list((tmp_path / "0" / "run").glob("start*"))
    assert not (tmp_path / "1" / "run" / "checkpoints").exists()


@pytest.mark.slow
def test_all_processes_end_with_2_where_the_folder_holds_another_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(recipe.to_json(Config()))
    job = Job(tmp_path, ["train", "tests/stuck.py:small", "--run-dir", str(tmp_path / "run")], num_processes=2)
    assert job.exit_codes() == [Exit.WRONG_CONFIG, Exit.WRONG_CONFIG], job.output()
    assert "holds a run with another configuration" in job.logs[1].read_text()
