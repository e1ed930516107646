"""Runs that are killed at random and restarted end bitwise equal to the undisturbed run."""

import contextlib
import itertools
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launcher import SHORT, SMALL

from gnp_scale.chaos import comparison
from gnp_scale.chaos.faults import STAGES, Kill, Outcome
from gnp_scale.cli import main
from gnp_scale.resilience.signals import SIGNALS
from gnp_scale.run.stages import Stage


def run_drill(folder, num_kills, *process_counts, command=SMALL):
    counts = [str(count) for count in process_counts]
    where = ["--run-dir", str(folder), "--num-kills", str(num_kills), "--num-devices", "4", "--num-processes", *counts]
    return main(["drill", *command, *where])


@pytest.mark.slow
@pytest.mark.usefixtures("unoptimized")
def test_kills_leave_no_trace(tmp_path, capfd):
    check_drill(tmp_path / "drill", 1, 2, SHORT, capfd)


@pytest.mark.long
def test_kills_of_one_process_leave_no_trace(tmp_path, capfd):
    check_drill(tmp_path / "drill", 7, 1, SMALL, capfd)


def check_drill(folder, num_kills, num_processes, command, capfd):
    code = run_drill(folder, num_kills, num_processes, command=command)
    said = capfd.readouterr().out
    assert code == 0, said
    assert f"kills {num_kills}, with an unexpected end 0; after restarts bitwise equal" in said


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_hundred_and_twenty_kills_leave_no_trace(tmp_path):
    assert run_drill(tmp_path / "drill", 120, 1, 2, 4) == 0


def test_kills_come_to_every_stage_with_every_signal_to_one_and_to_all():
    kills = list(itertools.islice(Kill.draw(random.Random(0), num_processes=4), 1000))
    assert {kill.stage for kill in kills[:7]} == set(STAGES) == set(Stage)
    numbers = {signal.SIGKILL, *SIGNALS}
    for stage in STAGES:
        assert {kill.signal for kill in kills if kill.stage == stage} == numbers
    assert {kill.victims for kill in kills} == {(0,), (1,), (2,), (3,), (0, 1, 2, 3)}
    assert all(0 <= kill.share <= 1 and kill.visit >= 1 for kill in kills)


@pytest.mark.parametrize(
    ("number", "codes", "end_s", "is_expected"),
    [
        (signal.SIGTERM, (75, 75), 3.0, True),
        (signal.SIGTERM, (0, 0), 3.0, True),
        (signal.SIGTERM, (75, 76), 3.0, False),
        (signal.SIGTERM, (75, 0), 3.0, False),
        (signal.SIGTERM, (-15, -15), 3.0, False),
        (signal.SIGTERM, (75, 75), 31.0, False),
        (signal.SIGKILL, (76, -9), 13.0, True),
        (signal.SIGKILL, (-6, -9), 121.0, False),
    ],
)
def test_what_a_kill_is_to_lead_to(number, codes, end_s, is_expected, monkeypatch):
    monkeypatch.setenv("GNP_SCALE_GRACE_S", "30")
    kill = Kill(Stage.TRAIN, 1, 0.5, number, (1,))
    assert Outcome(kill, Stage.TRAIN, 2, codes, end_s).is_expected == is_expected


ROWS = [{"step": 1, "train/loss": 2.0, "perf/step_ms": 5.0}, {"step": 2, "train/loss": 1.0, "perf/step_ms": 5.0}]
FASTER = [row | {"perf/step_ms": 1.0} for row in ROWS]
BATCHES = [(1, 11), (2, 22)]

DIFFERENCES = {
    "nothing but speed, and a step that was repeated": ("a", FASTER, [*BATCHES, (2, 22)], []),
    "state": ("b", ROWS, BATCHES, ["the last state"]),
    "number": ("a", [ROWS[0], ROWS[1] | {"train/loss": 1.5}], BATCHES, ["metrics.jsonl"]),
    "lost step": ("a", ROWS[1:], BATCHES, ["metrics.jsonl"]),
    "step logged twice": ("a", [*ROWS, ROWS[1]], BATCHES, ["metrics.jsonl"]),
    "other example": ("a", ROWS, [(1, 11), (2, 99), (2, 22)], ["other examples"]),
    "batch never seen": ("a", ROWS, BATCHES[:1], ["other examples"]),
}


@pytest.mark.parametrize(("state", "rows", "batches", "parts"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_differences_are_found(state, rows, batches, parts, tmp_path, monkeypatch):
    folders = {"whole": ("a", ROWS, BATCHES), "killed": (state, rows, batches)}
    states = {tmp_path / name / "run": state for name, (state, _, _) in folders.items()}
    monkeypatch.setattr(comparison, "fingerprint", states.__getitem__)
    for name, (_, own_rows, own_batches) in folders.items():
        (tmp_path / name / "run").mkdir(parents=True)
        lines = "".join(f"{json.dumps(row)}\n" for row in own_rows)
        (tmp_path / name / "run" / "metrics.jsonl").write_text(lines)
        lines = "".join(f"{json.dumps({'step': step, 'crc32': crc32})}\n" for step, crc32 in own_batches)
        (tmp_path / name / "examples-0.jsonl").write_text(lines)
    found = comparison.compare(tmp_path / "killed", tmp_path / "whole", num_processes=1)
    assert len(found) == len(parts)
    assert all(part in difference for part, difference in zip(parts, found, strict=True))


def test_a_folder_with_something_in_it_is_left_alone(tmp_path, capsys):
    (tmp_path / "precious").write_text("")
    assert run_drill(tmp_path, 1, 1) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (tmp_path / "precious").exists()


def test_a_run_that_takes_too_long_is_named_in_one_line(tmp_path, capsys):
    options = ["--run-dir", str(tmp_path / "drill"), "--num-processes", "1", "--num-devices", "1", "--timeout-s", "1"]
    assert main(["drill", *SMALL, *options]) == 2
    error = capsys.readouterr().err.strip()
    assert "has not ended within 1 s" in error
    assert "\n" not in error


def test_a_refused_run_says_what_to_change_and_leaves_the_folder_to_the_corrected_command(tmp_path, capsys):
    assert run_drill(tmp_path / "drill", 1, 1, command=[*SMALL, "--train.num-steps", "3"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "train.num_steps 3 is too small for optim.warmup_steps 10: add --optim.warmup-steps N" in line
    assert not list((tmp_path / "drill").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_drill_that_is_stopped_ends_its_processes(number, tmp_path):
    """They are not in the group of a terminal here, so no signal reaches them but by the drill."""
    folder = tmp_path / "drill"
    flags = ["--run-dir", str(folder), "--num-processes", "2", "--num-kills", "1"]
    # These tests may run where both are ignored: in the background, or under nohup.
    command = ["env", "--default-signal=INT,HUP", sys.executable, "-m", "gnp_scale.cli", "drill", *SMALL, *flags]
    drill = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while len(list(folder.glob("2-whole/stages-*"))) < 2:
        assert drill.poll() is None
        time.sleep(0.05)
    drill.send_signal(number)
    assert drill.communicate(timeout=30)[1].splitlines()[-1] == "gnp-scale: interrupted"
    assert drill.returncode == 130
    assert not [line for line in commands_of_processes() if str(folder) in line]


def commands_of_processes():
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield path.read_text(errors="replace")


def test_a_drill_under_nohup_still_hangs_up_its_runs(tmp_path):
    """nohup lets its processes ignore SIGHUP, which a drill sends."""
    show = "import signal, runpy, sys; from gnp_scale import cli; cli.main = lambda _: print(signal.getsignal(1)) or 0"
    run = 'sys.argv = ["worker", "s", "e"]; runpy.run_module("gnp_scale.chaos.worker", run_name="__main__")'
    command = ["nohup", sys.executable, "-c", f"{show}; {run}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert (done.returncode, done.stdout.strip()) == (0, "0"), done.stderr
