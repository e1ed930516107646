"""`gnp-scale sweep` as a user starts it, with real runs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_sweep_compare import cells

from gnp_scale.commands.sweeps import _is_finished

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimized")]

DEADLINE_S = 240
# Its steps take milliseconds, and there are enough of them for a signal to arrive in time.
TINY = (
    *("--model.depth", "1", "--model.width", "16", "--model.num-heads", "2", "--model.patch-size", "4"),
    *("--data.batch-size", "16", "--optim.warmup-steps", "0"),
    *("--train.num-steps", "600", "--train.log-every-steps", "50", "--train.eval-every-steps", "600"),
)
# The mesh of the second point does not fit one device, which only its own process can know.
GRID = ("--grid", "mesh.fsdp=1,3", "--grid", "train.seed=0")
POINT, MISFIT = "mesh.fsdp=1,train.seed=0", "mesh.fsdp=3,train.seed=0"


def start(folder, *options):
    command = [sys.executable, "-m", "gnp_scale.cli", "sweep", "configs/digits.py:quickstart", *TINY]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    root = Path(__file__).parent.parent
    return subprocess.Popen([*command, "--sweep-dir", str(folder), *options], text=True, cwd=root, env=env, **pipes)


def end(process):
    out, err = process.communicate(timeout=DEADLINE_S)
    return process.returncode, out, err


def test_a_stopped_sweep_goes_on_past_a_point_that_fails_and_grows(tmp_path):
    folder = tmp_path / "a sweep"
    log = folder / "logs" / f"{POINT}.log"
    process = start(folder, *GRID)
    deadline = time.monotonic() + DEADLINE_S
    while not (log.exists() and "step 50/" in log.read_text()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, out, err = end(process)
    assert code == 75, err
    assert [row["state"] for row in cells(out)] == ["stopped, exit code 75", "not started"]
    assert "and saved, no step is lost" in log.read_text()

    code, out, err = end(start(folder, *GRID))
    assert code == 2, "a restart does not help"
    assert "going on after step" in log.read_text()
    first, second = cells(out)
    assert (first["mesh.fsdp"], first["step"], first["state"]) == ("1", "600", "finished")
    assert second["state"] == "wrong configuration, exit code 2"
    assert f"{MISFIT}: wrong configuration, exit code 2: a mesh of" in err
    assert (folder / "table.md").read_text() == out
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")

    code, out, err = end(start(folder, "--grid", "mesh.fsdp=1", "--grid", "train.seed=0"))
    assert (code, len(cells(out))) == (0, 2), err
    assert ": points 1, finished 1" in err
    assert "started" not in err
    assert _is_finished(folder / POINT)
    (folder / POINT / "config.json").rename(folder / "kept.json")
    assert not _is_finished(folder / POINT), "as its row in the table says"
    (folder / "kept.json").rename(folder / POINT / "config.json")


@pytest.mark.parametrize("command", [["sweep", "configs/digits.py:quickstart"], ["bench", "generalization", "clean"]])
def test_a_signal_before_anything_is_started_ends_with_the_code_of_a_stop(command, tmp_path):
    """A scheduler starts the job again then."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def find_spec(name, *_):\n"
        "    if name == 'jax':\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.meta_path.insert(0, type('Finder', (), {'find_spec': find_spec}))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "gnp_scale.cli", *command],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 75, done.stderr
    assert done.stderr == "gnp-scale: SIGTERM: there is nothing to save: start the same command again to go on\n"


def test_every_point_is_checked_before_the_first_one_starts(tmp_path):
    code, out, err = end(start(tmp_path / "sweep", "--grid", "gnp.r=0.1,-1"))
    assert (code, out) == (2, "")
    assert err == "gnp-scale: gnp.r is -1.0: it must not be negative\n"
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize("arguments", [("--grid", "gnp.raduis=1"), ("--grid", "gnp.r=0.1", "--gnp.raduis", "1")])
def test_a_report_does_not_hide_a_misspelt_flag(arguments, tmp_path):
    code, out, err = end(start(tmp_path / "sweep", "--report", *arguments))
    assert (code, out) == (2, "")
    assert "there is no option --gnp.raduis" in err
