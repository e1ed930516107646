"""`gnp-scale bench generalization` as a user starts it, with real runs that are killed and stopped."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from image_sets import jpeg

from gnp_scale.chaos.local_processes import free_port
from gnp_scale.evidence.tables import NUM_EVALUATIONS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unoptimized")]

DEADLINE_S = 400
ROOT = Path(__file__).parent.parent
SMALL = ("--seeds", "1", "--tuning-seeds", "1", "--steps", "30")
# A user gives no number of devices, which a process can only choose before JAX is asked for them.
_USERS = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
ENV = _USERS | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture
def data(tmp_path):
    """As few photographs as there can be, of two classes, of which one is brighter."""
    random = np.random.default_rng(0)
    for split, num_images in (("train", 64), ("val", 16), ("test", 16)):
        for number in range(num_images):
            folder = tmp_path / "data" / "grocery_store" / split / f"class_{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels_HxWx3 = 100 * (number % 2) + random.integers(0, 150, (8, 8, 3), np.uint8)
            (folder / f"{number}.jpg").write_bytes(jpeg(pixels_HxWx3))
    return tmp_path / "data"


# Plain training at four points, not twelve, and photographs of 16 pixels, not 64.
FEWER = """
from dataclasses import replace

from gnp_scale.evidence import methods, tables

methods.PLAIN_RATES = (0.5, 1.0)
table = tables.TABLES["photographs"]


def small(num_steps):
    config = table.config(num_steps)
    return replace(config, data=replace(config.data, image_size=16))


tables.TABLES["photographs"] = replace(table, config=small)
"""


@pytest.fixture
def fewer_points_and_pixels(tmp_path, monkeypatch):
    """In every process that is started: Python imports this module."""
    (tmp_path / "sitecustomize.py").write_text(FEWER)
    monkeypatch.setitem(ENV, "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))


def start(folder, data, *options, **variables):
    command = [sys.executable, "-m", "gnp_scale.cli", "bench", "generalization", "photographs", "--out", str(folder)]
    command += [*SMALL, "--data.root", str(data), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=ENV | variables, **pipes)


def wait_for(process, is_there):
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.usefixtures("fewer_points_and_pixels")
def test_a_killed_and_a_stopped_row_go_on_to_the_report(tmp_path, data):
    """The process of the row is killed in its second run, and the command is stopped in a later one."""
    folder = tmp_path / "evidence"
    row = start(folder, data, "--row", "plain")
    wait_for(row, lambda: any(folder.glob("plain/tune,*/outcome.json")))
    row.send_signal(signal.SIGKILL)
    row.communicate(timeout=DEADLINE_S)
    first = {path: path.read_bytes() for path in folder.glob("plain/*/outcome.json")}
    assert first

    process = start(folder, data, "--only", "plain")
    wait_for(process, lambda: len(list(folder.glob("plain/tune,*/outcome.json"))) > len(first) + 1)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 75, err
    assert "stopped: the same command goes on" in err
    assert "| plain " in out, "the report on what there is"

    process = start(folder, data, "--only", "plain")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert all(path.read_bytes() == text for path, text in first.items()), "finished runs are left alone"
    outcomes = {path.parent.name: json.loads(path.read_bytes()) for path in folder.glob("plain/*/outcome.json")}
    assert sorted(name.partition(",")[0] for name in outcomes) == ["final", *["tune"] * 4]
    for name, found in outcomes.items():
        assert len(found["validation"]) == NUM_EVALUATIONS
        assert (found["test_best"] is None) == (found["test_final"] is None) == name.startswith("tune")
        # The kill may have come between an outcome and the removal of its checkpoints.
        if folder / "plain" / name / "outcome.json" not in first:
            assert any((folder / "plain" / name / "checkpoints").glob("*")) == name.startswith("final")
    best = {
        tuple(name.split(",")[1:-1]): max(found["validation"].values())
        for name, found in outcomes.items()
        if name.startswith("tune")
    }
    (chosen,) = [name for name in outcomes if name.startswith("final")]
    assert best[tuple(chosen.split(",")[1:-1])] == max(best.values())
    assert (folder / "table.md").read_text() == out

    # As if it were killed after the last step and before its outcome is written.
    (folder / "plain" / chosen / "outcome.json").unlink()
    metrics = folder / "plain" / chosen / "metrics.jsonl"
    content = metrics.read_bytes()
    # A power cut may leave zeros.
    metrics.write_bytes(re.sub(rb'\{"step": 4,.*', b"\0" * 40, content))
    assert metrics.read_bytes() != content
    process = start(folder, data, "--only", "plain")
    assert "evaluations: remove it, and it is trained again" in process.communicate(timeout=DEADLINE_S)[1]
    metrics.write_bytes(content)
    process = start(folder, data, "--only", "plain")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    again = json.loads((folder / "plain" / chosen / "outcome.json").read_bytes())
    assert again | {"seconds": 0} == outcomes[chosen] | {"seconds": 0}
    report = json.loads((folder / "table.json").read_bytes())["methods"]["plain"]
    assert report["test_best"]["mean"] == outcomes[chosen]["test_best"]


def start_two(folder, data):
    """A row in two processes that train together."""
    together = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    return [start(folder, data, "--row", "plain", **together, JAX_PROCESS_ID=str(rank)) for rank in range(2)]


@pytest.mark.long
@pytest.mark.usefixtures("fewer_points_and_pixels")
def test_a_row_of_two_processes_is_stopped_through_one_and_goes_on(tmp_path, data):
    """A signal to either of them stops both, and each outcome is written once, by the main process."""
    folder = tmp_path / "evidence"
    processes = start_two(folder, data)
    wait_for(processes[1], lambda: any(folder.glob("plain/tune,*/outcome.json")))
    processes[1].send_signal(signal.SIGTERM)
    errors = [process.communicate(timeout=DEADLINE_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [75, 75], errors
    first = {path: path.read_bytes() for path in folder.glob("plain/*/outcome.json")}

    processes = start_two(folder, data)
    errors = [process.communicate(timeout=DEADLINE_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert "failed" not in "".join(errors)
    assert all(path.read_bytes() == text for path, text in first.items()), "finished runs are left alone"
    outcomes = {path.parent.name: json.loads(path.read_bytes()) for path in folder.glob("plain/*/outcome.json")}
    assert sorted(name.partition(",")[0] for name in outcomes) == ["final", *["tune"] * 4]
    (final,) = (found for name, found in outcomes.items() if name.startswith("final"))
    assert final["test_best"] is not None
