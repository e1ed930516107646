"""`gnp-scale bench generalization` as a user starts it, with real runs that are killed and stopped."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow

DEADLINE_S = 400
ROOT = Path(__file__).parent.parent
SMALL = ("--seeds", "1", "--tuning-seeds", "1", "--steps", "30")
# A user gives no number of devices, which a process can only choose before JAX is asked for them.
_USERS = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
ENV = _USERS | {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture
def data(tmp_path):
    """As many images as the tables draw: each class is brighter than the one before."""
    folder, random = tmp_path / "data" / "fashion_mnist", np.random.default_rng(0)
    folder.mkdir(parents=True)
    for prefix, num_images in (("train", 8000), ("t10k", 100)):
        label_N = np.arange(num_images, dtype=np.uint8) % 10
        image_NxHxW = (25 * label_N)[:, None, None] + random.integers(0, 25, (num_images, 28, 28), np.uint8)
        for name, values in (("images-idx3", image_NxHxW), ("labels-idx1", label_N)):
            head = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(head + values.astype(np.uint8).tobytes())
    return folder.parent


def start(folder, data, *options):
    command = [sys.executable, "-m", "gnp_scale.cli", "bench", "generalization", "noise40", "--out", str(folder)]
    command += [*SMALL, "--data.root", str(data), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, text=True, cwd=ROOT, env=ENV, **pipes)


def wait_for(process, is_there):
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_there():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


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
    assert sorted(name.partition(",")[0] for name in outcomes) == ["final", *["tune"] * 12]
    for name, found in outcomes.items():
        assert len(found["validation"]) == 15
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
    process = start(folder, data, "--only", "plain")
    _, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    again = json.loads((folder / "plain" / chosen / "outcome.json").read_bytes())
    assert again | {"seconds": 0} == outcomes[chosen] | {"seconds": 0}
    report = json.loads((folder / "table.json").read_bytes())["methods"]["plain"]
    assert report["test_best"]["mean"] == outcomes[chosen]["test_best"]
