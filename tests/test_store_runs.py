"""Runs on object stores: killed, disturbed, restarted on a machine that has nothing, they end bitwise equal."""

import random
import signal
from pathlib import Path

import pytest
from launcher import Job
from store_proxy import cut, delay, drop, refuse
from test_drill import SMALL as OFTEN_SAVED

from gnp_scale.checkpoint import fingerprint
from gnp_scale.cli import main
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.run.history import read_history

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_STEPS = 60
SMALL = [*OFTEN_SAVED, "--train.eval-every-steps", "30", "--checkpoint.every-steps", "12"]


def numbers(run_dir):
    return [{name: value for name, value in row.items() if "perf/" not in name} for row in read_metrics(run_dir)]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a run on this machine, for each number of processes."""
    folders = {}

    def of(num_processes):
        if num_processes not in folders:
            folder = tmp_path_factory.mktemp("undisturbed")
            assert start(folder, folder / "run", num_processes).exit_codes() == [0] * num_processes
            folders[num_processes] = folder / "run"
        return folders[num_processes]

    return of


def start(folder, run_dir, num_processes, recipe=SMALL[0]):
    """A start on a machine whose temporary folder is `folder`."""
    variables = {"TMPDIR": str(folder), "GNP_SCALE_BUDGETS_S": "silence=10,join=60"}
    return Job(
        folder / "logs", ["train", recipe, *SMALL[1:], "--run-dir", str(run_dir)], num_processes, 4, variables=variables
    )


@pytest.mark.parametrize(
    ("store", "num_processes"),
    [
        pytest.param("gs", 1, marks=pytest.mark.slow),
        *(pytest.param(*case, marks=pytest.mark.long) for case in (("s3", 1), ("gs", 2), ("s3", 2))),
    ],
    indirect=["store"],
)
def test_a_killed_and_disturbed_run_ends_as_one_on_this_machine(store, num_processes, undisturbed, tmp_path):
    rng = random.Random(f"{store.scheme} {num_processes}")
    folder = store.folder()
    for number, kill in enumerate([signal.SIGKILL, signal.SIGTERM, None]):
        for fault in (refuse(503), refuse(429), cut, drop, delay(0.5)):
            store.proxy.disturb(fault, 1, rng.choice(["/d/", "manifest", "METADATA", "run", "metrics"]))
        (tmp_path / str(number)).mkdir()
        job = start(tmp_path / str(number), folder, num_processes)
        if kill is not None:
            job.wait_for(f"step {rng.randrange(8, 22) + 22 * number}/{NUM_STEPS}")
            job.processes[0].send_signal(kill)
        codes = job.exit_codes()
        assert codes[0] == {signal.SIGKILL: -9, signal.SIGTERM: 75, None: 0}[kill], job.output()
        store.proxy.calm()
    whole = undisturbed(num_processes)
    assert fingerprint(folder) == fingerprint(whole)
    assert numbers(folder) == numbers(whole)
    assert [begun.exit for begun in read_history(folder).starts] == [None, 75, 0]
    assert not list(tmp_path.glob("2/gnp-scale-*")), "nothing stays on the machine"


@pytest.mark.slow
@pytest.mark.parametrize("store", ["s3"], indirect=True)
def test_a_run_on_a_store_is_shown_evaluated_and_hashed(store, tmp_path, capsys):
    folder = store.folder()
    few = ["--train.num-steps", "4", "--optim.warmup-steps", "1"]
    job = Job(tmp_path, ["train", *SMALL, *few, "--run-dir", str(folder)], num_devices=1)
    assert job.exit_codes() == [0], job.output()
    assert f"--logdir {folder}" in job.output()
    assert main(["status", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown
    assert str(folder) in shown
    assert "step 4" in shown
    assert main(["fingerprint", str(folder)]) == 0
    assert "  step 4" in capsys.readouterr().out
    before = folder.names()
    job = Job(tmp_path, ["eval", str(folder)], num_devices=1)
    assert job.exit_codes() == [0], job.output()
    assert '{"step": 4, "eval/loss": ' in job.output()
    assert folder.names() == before


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("hdfs://name/run", "give a path, gs:// or s3://"),
        ("{scheme}://bucket", "name a bucket and a folder"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_folder(store, text, part, tmp_path, monkeypatch, capsys):
    recipe = str(Path(SMALL[0]).absolute())
    monkeypatch.chdir(tmp_path)
    assert main(["train", recipe, *SMALL[1:], "--run-dir", text.format(scheme=store.scheme)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert part in lines[-1]
    assert len(lines) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_bucket_that_is_not_there_is_one_line_and_leaves_no_folder(store, tmp_path_factory, monkeypatch):
    """In a process of its own: a start blocks signals."""
    recipe, here = str(Path(SMALL[0]).absolute()), tmp_path_factory.mktemp("here")
    monkeypatch.chdir(here)
    job = start(tmp_path_factory.mktemp("machine"), f"{store.scheme}://no-such-bucket/run", 1, recipe)
    assert job.exit_codes() == [2], job.output()
    assert "there is no such bucket" in job.output()
    assert "Traceback" not in job.output()
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", ["status", "eval", "fingerprint"])
def test_a_folder_without_a_run_is_one_line(store, command, capsys):
    assert main([command, str(store.folder())]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "give the folder of a run" in line


@pytest.mark.parametrize("command", ["status", "eval", "fingerprint"])
def test_a_store_that_refuses_is_one_line(store, command, capsys):
    store.proxy.disturb(refuse(403), 1000)
    assert main([command, str(store.folder())]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be read" in line
