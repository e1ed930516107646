"""The batch scripts under a real Slurm: the action for each exit code, and runs that lose their nodes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from run_folders import make_run
from slurm_cluster import INSTALL, SlurmCluster, missing_programs

from gnp_scale import recipe
from gnp_scale.checkpoint import fingerprint
from gnp_scale.sweeps.grid import name_of, with_values

ROOT = Path(__file__).parent.parent
TRAIN = "launch/slurm/train.sbatch"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("unoptimized"),
    pytest.mark.skipif(bool(missing_programs()), reason=f"no {', '.join(missing_programs())}: {INSTALL}"),
]

# Replaces the trainer: exits with one of its codes at each start, and prints where it ran and its arguments.
STUB = """#!/usr/bin/env bash
echo "start ${SLURM_RESTART_COUNT:-0} on $SLURMD_NODENAME, grace $GNP_SCALE_GRACE_S, devices $JAX_LOCAL_DEVICE_IDS: $*"
IFS=, read -ra codes <<<"$2"
exit "${codes[${SLURM_RESTART_COUNT:-0}]}"
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = SlurmCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def stub_path(tmp_path_factory):
    """A PATH on which gnp-scale is the stub."""
    return f"{_program(tmp_path_factory.mktemp('stub'), 'gnp-scale', STUB)}:{os.environ['PATH']}"


def _program(folder, name, text):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
    return folder


# Exit codes of the trainer at each start: the state of the job, its exit code and its restarts in the end.
ENDS = {
    "0": ("COMPLETED", "0:0", 0),
    "2": ("FAILED", "2:0", 0),
    "77": ("FAILED", "77:0", 0),
    "75,75,0": ("COMPLETED", "0:0", 2),
    "76,0": ("COMPLETED", "0:0", 1),
    "137,0": ("COMPLETED", "0:0", 1),
    "1,1,1": ("FAILED", "1:0", 2),
}


@pytest.fixture(scope="module")
def ended_jobs(cluster, stub_path, tmp_path_factory):
    """One job for each row of `ENDS`, run side by side."""
    log_dir, env = tmp_path_factory.mktemp("ends"), {"PATH": stub_path, "MAX_RESTARTS": "2"}
    numbers = [cluster.submit(f"--output={log_dir}/%j.log", TRAIN, codes, **env) for codes in ENDS]
    return dict(zip(ENDS, [cluster.wait_for_state(number, "COMPLETED", "FAILED") for number in numbers], strict=True))


@pytest.mark.parametrize("codes", ENDS)
def test_the_exit_code_decides_whether_the_job_starts_again(codes, ended_jobs):
    job = ended_jobs[codes]
    assert (job["JobState"], job["ExitCode"], int(job["Restarts"])) == ENDS[codes]


def test_an_array_runs_each_line_of_flags_in_a_folder_of_its_own(cluster, stub_path, tmp_path):
    # The last line may lack its end.
    (tmp_path / "flags").write_text("--gnp.alpha 0.2\n--gnp.alpha 0.4 --train.seed 1")
    command = ("--array=1-2", f"--output={tmp_path}/%a.log", "launch/slurm/array.sbatch", f"{tmp_path}/flags")
    number = cluster.submit(*command, "runs/sweep", "0", PATH=stub_path)
    cluster.wait_until(lambda: not cluster.run("squeue", "--noheader", "--jobs", str(number)))
    starts = [re.findall("grace.*", (tmp_path / f"{element}.log").read_text()) for element in (1, 2)]
    assert starts == [
        ["grace 20, devices : train 0 --run-dir runs/sweep/1 --gnp.alpha 0.2"],
        ["grace 20, devices : train 0 --run-dir runs/sweep/2 --gnp.alpha 0.4 --train.seed 1"],
    ]


def test_an_element_without_a_line_of_flags_is_refused(tmp_path):
    (tmp_path / "flags").write_text("--gnp.alpha 0.2\n")
    env = os.environ | {"SLURM_ARRAY_TASK_ID": "2", "GNP_SCALE_GRACE_S": "20"}
    command = ["bash", "launch/slurm/array.sbatch", f"{tmp_path}/flags", "runs/sweep", "0"]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{tmp_path}/flags has no flags in line 2: give --array the numbers of its lines\n"


# Replaces the trainer: a run waits for the file `go`. That of seed 1 then diverges, as long as there is no file
# `mended`; others leave the record of a run that is finished.
SWEEP_STUB = """#!/usr/bin/env bash
echo "$SLURM_ARRAY_TASK_ID ${!#}" >>FOLDER/starts
until [[ -e FOLDER/go ]]; do sleep 0.1; done
if [[ "$*" == *"--train.seed 1"* && ! -e FOLDER/mended ]]; then exit 77; fi
mkdir -p "${!#}"
cp FOLDER/finished/"$(basename "${!#}")"/* "${!#}"
"""


def test_a_sweep_is_an_array_job_and_a_further_one_for_what_is_not_finished(cluster, tmp_path):
    points = [{"gnp.r": r, "train.seed": seed} for r in (0.1, 0.2) for seed in (0, 1)]
    names = [name_of(values) for values in points]
    for name, values in zip(names, points, strict=True):
        make_run(tmp_path / "finished" / name, with_values(recipe.load(RECIPE[0]), values), {})
    stub = SWEEP_STUB.replace("FOLDER", str(tmp_path))
    env = cluster.env | {"PATH": f"{_program(tmp_path, 'gnp-scale', stub)}:{os.environ['PATH']}"}
    folder, grid = tmp_path / "a sweep", ("--grid", "gnp.r=0.1,0.2", "--grid", "train.seed=0,1")

    def sweep(*options):
        command = (sys.executable, "-m", "gnp_scale.cli", "sweep", RECIPE[0], "--sweep-dir", str(folder), *options)
        return subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)

    def wait(done):
        number = done.stdout.strip()
        assert done.returncode == 0, done.stderr
        cluster.wait_until(lambda: not cluster.run("squeue", "--noheader", "--jobs", number))

    first = sweep("--slurm", *grid, "--sbatch=--comment=mine", "--jobs", "2")
    again = sweep("--slurm", *grid)
    assert again.returncode == 2
    assert re.search(r"[1-4] tasks of job \d+ of this sweep are in the queue", again.stderr)
    (tmp_path / "go").touch()
    wait(first)
    expected = [f"{number} {folder / name}" for number, name in enumerate(names, 1)]
    starts = tmp_path / "starts"
    assert sorted(starts.read_text().splitlines()) == expected
    assert "starting again would not help" in (folder / "slurm" / "2.log").read_text()

    (tmp_path / "mended").touch()
    wait(sweep("--slurm", *grid))
    assert sorted(starts.read_text().splitlines()[4:]) == [expected[1], expected[3]]


def test_a_job_leaves_an_unhealthy_node_before_it_trains(cluster, stub_path, tmp_path):
    sick_once = '#!/bin/sh\necho 0\n[ "$SLURM_RESTART_COUNT$SLURM_PROCID" = 1 ] || echo 0\n'
    path = f"{_program(tmp_path, 'nvidia-smi', sick_once)}:{stub_path}"
    options = ("--nodes=2", f"--output={tmp_path}/log")
    number = cluster.submit(*options, TRAIN, "1,0", PATH=path, SLURM_GPUS_ON_NODE="2")
    cluster.wait_for_state(number, "COMPLETED")
    log = (tmp_path / "log").read_text()
    (unhealthy,) = re.findall(r"(\S+): 1 GPUs, of 2", log)
    starts = re.findall(r"start (\d) on (\S+), grace 20, devices (\S+):", log)
    assert [(restart, devices) for restart, _, devices in starts] == [("1", "0,1"), ("1", "0,1")]
    assert unhealthy not in [node for _, node, _ in starts]


RECIPE = (
    "configs/digits.py:quickstart",
    *("--model.depth", "1", "--model.width", "32", "--model.num-heads", "2", "--data.batch-size", "16"),
    *("--optim.warmup-steps", "10", "--train.log-every-steps", "5", "--train.eval-every-steps", "1000000"),
    # The program does not depend on the number of steps, so all runs share it.
    *("--optim.schedule", "constant"),
)
NUM_STEPS = 40
"""Enough for Slurm to preempt the run after step 5; two processes take half a second of a core for each."""
TRAINER = {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "2",
}


class Run:
    """A run of the real trainer on two nodes."""

    def __init__(self, cluster, folder, num_steps, *flags):
        self.cluster, self.dir, self._log = cluster, folder / "run", folder / "log"
        flags = ("--run-dir", str(self.dir), "--train.num-steps", str(num_steps), *flags)
        self.number = cluster.submit("--nodes=2", f"--output={self._log}", TRAIN, *RECIPE, *flags, **TRAINER)

    def log(self):
        return self._log.read_text() if self._log.exists() else ""

    def wait_for(self, pattern):
        self.cluster.wait_until(lambda: re.search(pattern, self.log(), re.DOTALL), self.log)


@pytest.fixture(scope="module")
def whole_run(cluster, tmp_path_factory):
    """The undisturbed run."""
    run = Run(cluster, tmp_path_factory.mktemp("whole"), NUM_STEPS)
    cluster.wait_for_state(run.number, "COMPLETED")
    return run


@pytest.mark.long
def test_a_sweep_with_slurm_trains_its_points_and_reports_on_them(cluster, tmp_path):
    """Here no program is replaced."""
    env = cluster.env | TRAINER
    command = [sys.executable, "-m", "gnp_scale.cli", "sweep", *RECIPE, "--sweep-dir", str(tmp_path / "sweep")]
    command += ["--grid", "gnp.alpha=0,1", "--train.num-steps", "10", "--train.eval-every-steps", "10"]

    def sweep(option):
        return subprocess.run([*command, option], env=env, cwd=ROOT, capture_output=True, text=True)

    submitted = sweep("--slurm")
    assert submitted.returncode == 0, submitted.stderr
    cluster.wait_until(lambda: not cluster.run("squeue", "--noheader", "--jobs", submitted.stdout.strip()))
    reported = sweep("--report")
    assert reported.returncode == 0, reported.stderr
    rows = [line.split("|")[1:3] for line in reported.stdout.splitlines() if line.startswith("|")]
    assert [[cell.strip() for cell in row] for row in rows[2:]] == [["0.0", "1/1"], ["1.0", "1/1"]], reported.stdout


def test_a_preempted_job_goes_on_elsewhere_and_ends_bitwise_the_same(cluster, whole_run, tmp_path):
    run = Run(cluster, tmp_path, NUM_STEPS)
    run.wait_for("step 5/")
    nodes = cluster.job(run.number)["NodeList"]
    cluster.submit(
        "--partition=high", "--nodes=2", f"--nodelist={nodes}", f"--output={tmp_path}/high", "--wrap=sleep 30"
    )
    job = cluster.wait_for_state(run.number, "COMPLETED")
    assert (int(job["Restarts"]), job["NodeList"] == nodes) == (1, False)
    assert "SIGTERM in process" in run.log()
    assert "going on after step" in run.log()
    assert fingerprint(run.dir) == fingerprint(whole_run.dir)


def test_a_job_outlives_its_time_limit_and_a_lost_node_but_not_scancel(cluster, tmp_path):
    run = Run(cluster, tmp_path, 1_000_000, "--checkpoint.every-steps", "5")
    run.wait_for("step 5/")
    hours, minutes, _ = cluster.job(run.number)["RunTime"].split(":")
    cluster.update_job(run.number, TimeLimit=60 * int(hours) + int(minutes) + 3)
    run.wait_for("SIGUSR1 in process.*stopped after step [0-9]+ and saved")
    cluster.wait_until(lambda: int(cluster.job(run.number)["Restarts"]) > 0, run.log)
    cluster.update_job(run.number, TimeLimit=60)
    run.wait_for("going on after step.*step [0-9]+/")

    _, second = cluster.hosts(cluster.job(run.number)["NodeList"])
    cluster.lose_node(second)
    run.wait_for("(going on after step.*step [0-9]+/.*){2}")
    job = cluster.job(run.number)
    assert second not in cluster.hosts(job["NodeList"])

    cluster.cancel(run.number)
    cluster.wait_until(lambda: not cluster.run("squeue", "--noheader"), run.log)
    cancelled = cluster.job(run.number)
    assert (cancelled["JobState"], cancelled["Restarts"]) == ("CANCELLED", job["Restarts"])
    assert len(re.findall("stopped after step [0-9]+ and saved", run.log())) == 2
    cluster.start_node(second)
