"""The TPU VM script: its commands are those of the golden file, and its loop acts on states and codes."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden" / "tpu_vm_dry_run.txt"
SETTINGS = {
    "TPU_NAME": "gnp",
    "PROJECT": "my-project",
    "ZONE": "us-west4-a",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "RUNS_NFS": "10.0.0.2:/runs",
    "MAX_FAILURES": "2",
    "RETRY_S": "0",
}

# Logs its verb; answers `describe` with the next line of `states`, and exits from training with the next of `codes`. A
# state that begins with ! means that the request does not exist.
GCLOUD = """#!/usr/bin/env bash
next() { head -n1 "$1" && sed -i 1d "$1"; }
case "$*" in
    *describe*) state=$(next states) && [[ $state != !* ]] && echo "$state" ;;
    *" ssh "*worker_setup*) echo setup >>verbs ;;
    *" ssh "*worker_train*) echo train >>verbs && exit "$(next codes)" ;;
    *create*) echo create >>verbs ;;
    *delete*) echo delete >>verbs ;;
esac
"""


@pytest.fixture
def checkout(tmp_path):
    """A folder with the files of a checkout that the script needs, and a wheel."""
    shutil.copytree(ROOT / "launch" / "tpu_vm", tmp_path / "launch" / "tpu_vm")
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "gnp_scale-0.1.0-py3-none-any.whl").touch()
    return tmp_path


def _train(checkout, *arguments, **env):
    command = [checkout / "launch" / "tpu_vm" / "train.sh", *arguments]
    return subprocess.run(command, env=os.environ | SETTINGS | env, capture_output=True, text=True, timeout=60)


def test_a_dry_run_prints_the_commands_of_the_golden_file(checkout):
    done = _train(checkout, "--dry-run", "configs/digits.py:quickstart", "--run-dir", "/mnt/runs/my digits")
    assert done.returncode == 0, done.stderr
    assert done.stdout == GOLDEN.read_text(), (
        f"launch/tpu_vm/train.sh prints other commands than {GOLDEN.name} holds: if these are meant, put them there"
    )


def test_with_a_bucket_no_file_system_is_mounted(checkout):
    arguments = ["--dry-run", "configs/digits.py:quickstart", "--run-dir", "gs://my-bucket/digits"]
    done = _train(checkout, *arguments, RUNS_NFS="")
    assert done.returncode == 0, done.stderr
    setup, train = [line for line in done.stdout.splitlines() if "worker_setup.sh " in line or " ssh " in line][-2:]
    assert "--command=bash\\ worker_setup.sh --project" in setup
    assert "gs://my-bucket/digits" in train


STORIES = {
    "a slice is asked for, and given back in the end": (
        ["!", "WAITING_FOR_RESOURCES", "ACTIVE"],
        [0],
        ["create", "setup", "train", "delete"],
        0,
    ),
    "a preempted slice is asked for again": (
        ["ACTIVE", "SUSPENDED", "!", "PROVISIONING", "ACTIVE"],
        [75, 0],
        ["setup", "train", "delete", "create", "setup", "train", "delete"],
        0,
    ),
    "a slice that is lost in the middle is no failure": (
        ["ACTIVE", *["SUSPENDED", "SUSPENDED", "!", "ACTIVE"] * 2],
        [255, 255, 0],
        ["setup", "train", *["delete", "create", "setup", "train"] * 2, "delete"],
        0,
    ),
    "a hung run is started again on the same slice": (
        ["ACTIVE", "ACTIVE", "ACTIVE"],
        [76, 0],
        ["setup", "train", "setup", "train", "delete"],
        0,
    ),
    "a wrong configuration stops, and keeps the slice": (["ACTIVE"], [2], ["setup", "train"], 2),
    "a diverged run stops, and keeps the slice": (["ACTIVE"], [77], ["setup", "train"], 77),
    "failures end after a while": (["ACTIVE"] * 4, [1, 1], ["setup", "train"] * 2, 1),
}


@pytest.mark.parametrize(("states", "codes", "verbs", "code"), STORIES.values(), ids=STORIES.keys())
def test_the_loop_acts_on_states_and_exit_codes(states, codes, verbs, code, checkout):
    (checkout / "gcloud").write_text(GCLOUD)
    (checkout / "gcloud").chmod(0o755)
    for name, lines in (("states", states), ("codes", codes)):
        (checkout / name).write_text("".join(f"{line}\n" for line in lines))
    done = _train(checkout, "recipe.py:one", PATH=f"{checkout}:{os.environ['PATH']}")
    assert done.returncode == code, done.stdout + done.stderr
    assert (checkout / "verbs").read_text().split() == verbs


def test_nothing_is_asked_for_without_a_wheel_or_with_a_late_dry_run(checkout):
    (checkout / "gcloud").write_text(GCLOUD)
    (checkout / "gcloud").chmod(0o755)
    path = f"{checkout}:{os.environ['PATH']}"
    late = _train(checkout, "recipe.py:one", "--dry-run", PATH=path)
    (checkout / "dist" / "gnp_scale-0.2.0-py3-none-any.whl").touch()
    several = _train(checkout, "recipe.py:one", PATH=path)
    shutil.rmtree(checkout / "dist")
    none = _train(checkout, "--dry-run", "recipe.py:one", PATH=path)
    assert [done.returncode for done in (late, several, none)] == [2, 2, 2]
    assert late.stderr == "--dry-run comes before the recipe: give it first\n"
    for done in (several, none):
        assert done.stderr.startswith("dist/ must hold one wheel of gnp_scale, and has: dist/gnp_scale-")
    assert not (checkout / "verbs").exists()


@pytest.mark.parametrize("name", ["TPU_NAME", "PROJECT", "RUNS_NFS"])
def test_a_missing_setting_is_named(name, checkout):
    done = _train(checkout, "--dry-run", "recipe.py:one", **{name: ""})
    assert done.returncode != 0
    assert re.search(rf"{name}: ", done.stderr)
