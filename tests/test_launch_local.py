"""The local launcher, with a stand-in for the trainer: signals reach every process, and a failure ends them all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "launch" / "local" / "train.py"

# Each process exits with its part of the recipe, or waits for a signal and exits with 75.
TRAINER = """
import os, signal, sys, time

rank = int(os.environ["JAX_PROCESS_ID"])
part = sys.argv[2].split(",")[rank]
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
    signal.signal(number, lambda *_: sys.exit(75))
print("rank", rank, "of", os.environ["JAX_NUM_PROCESSES"], "by", os.environ["JAX_COORDINATOR_ADDRESS"], *sys.argv[3:])
sys.stdout.flush()
time.sleep(100) if part == "wait" else sys.exit(int(part))
"""


@pytest.fixture
def start(tmp_path):
    """Starts the launcher where `gnp_scale.cli` is the stand-in."""
    package = tmp_path / "gnp_scale"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cli.py").write_text(TRAINER)
    started = []

    def start(*arguments):
        command = [sys.executable, SCRIPT, *arguments]
        started.append(subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=os.environ))
        return started[-1]

    yield start
    for process in started:
        process.kill()


def _wait_for_logs(folder, num_processes):
    while not all(
        (log := folder / "logs" / f"{rank}.log").exists() and log.read_text() for rank in range(num_processes)
    ):
        time.sleep(0.05)


def test_each_process_has_its_rank_the_flags_and_a_log(start, tmp_path):
    launcher = start("3", "0,0,0", "--run-dir", "runs/x", "--log-dir", "elsewhere")
    launcher.communicate()
    assert launcher.returncode == 0
    lines = [(tmp_path / "elsewhere" / f"{rank}.log").read_text() for rank in range(3)]
    assert [line.split(" by ")[0] for line in lines] == ["rank 0 of 3", "rank 1 of 3", "rank 2 of 3"]
    assert len({line.split(" by ")[1] for line in lines}) == 1
    assert lines[0].endswith("--run-dir runs/x\n")


def test_the_first_failure_is_shown_and_the_others_are_ended(start):
    launcher = start("2", "wait,3", "--grace-s", "0.5")
    output, _ = launcher.communicate()
    assert launcher.returncode == 3
    assert "process 1 was the first to stop, with exit code 3" in output
    assert "rank 1 of 2" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_reaches_every_process(number, start, tmp_path):
    launcher = start("2", "wait,wait")
    _wait_for_logs(tmp_path, 2)
    launcher.send_signal(number)
    launcher.communicate(
        timeout=60
    )  # less than the grace time, after which a process without the signal would be killed
    assert launcher.returncode == 75


def test_a_process_that_dies_by_a_signal_has_a_shell_s_exit_code(start, tmp_path):
    launcher = start("2", "wait,wait", "--grace-s", "0.5")
    _wait_for_logs(tmp_path, 2)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    output, _ = launcher.communicate()
    assert launcher.returncode == 137
    assert "process 1 was the first to stop" in output


def test_a_wrong_number_or_folder_is_one_line(tmp_path):
    """The usage, and the line."""
    (tmp_path / "file").touch()
    (tmp_path / "logs" / "1.log").mkdir(parents=True)
    for arguments, part in (
        (("0", "r.py:one"), "num_processes is 0: give at least 1"),
        (("1", "r.py:one", "--log-dir", "file"), "file cannot be made (File exists): give another folder as --log-dir"),
        (("2", "r.py:one"), "logs/1.log cannot be made (Is a directory): give another folder as --log-dir"),
        (("1", "r.py:one", "--grace-s", "nan"), "--grace-s is nan: give 0 or more seconds"),
    ):
        done = subprocess.run([sys.executable, SCRIPT, *arguments], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(part)


def test_processes_go_on_when_nobody_reads_what_the_launcher_says(start, tmp_path):
    """As in a pipe to a command that has ended."""
    launcher = start("2", "wait,wait")
    launcher.stdout.close()
    _wait_for_logs(tmp_path, 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 75


FAILS_LATER = f"""
import runpy, subprocess, sys
start = subprocess.Popen
def fail_at_the_second(*arguments, **options):
    if options["env"]["JAX_PROCESS_ID"] == "1":
        raise BlockingIOError("no more processes")
    process = start(*arguments, **options)
    print(process.pid)
    return process
subprocess.Popen = fail_at_the_second
sys.argv = ["train.py", "2", "wait,wait"]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.mark.usefixtures("start")
def test_no_process_is_left_if_another_cannot_be_started(tmp_path):
    script = tmp_path / "scripts" / "fails.py"
    script.parent.mkdir()
    script.write_text(FAILS_LATER)
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "no more processes" in done.stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)
