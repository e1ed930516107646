"""While a process is stopped its clock stops, and the helper process that would end it waits."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from gnp_scale.resilience import lifeline
from gnp_scale.run import awake
from gnp_scale.run.awake import AwakeClock

TICK_S = 2.0


@pytest.mark.parametrize(
    ("gaps_s", "seconds", "stops_s"),
    [
        ([2.0, 2.1, 2.0], 6.1, []),
        ([2.0, 9.0, 2.0], 13.0, []),  # late, on a loaded machine
        ([2.0, 3600.0, 2.0], 6.0, [3598.0]),
        ([3600.0, 100.0], 4.0, [3598.0, 98.0]),
    ],
)
def test_the_clock_stands_while_the_process_is_stopped(monkeypatch, gaps_s, seconds, stops_s):
    now_s, stops = 1000.0, []
    monkeypatch.setattr(awake.time, "monotonic", lambda: now_s)
    clock = AwakeClock(TICK_S, stops.append)
    began_s = clock.now_s()
    for gap_s in gaps_s:
        now_s += gap_s
        clock.now_s()
    assert clock.now_s() - began_s == pytest.approx(seconds)
    assert stops == pytest.approx(stops_s)


def test_a_wait_ends_by_the_event_or_after_its_time():
    event = threading.Event()
    assert not awake.wait(event, 0.05)
    event.set()
    assert awake.wait(event, 60)


CHILD = """
import faulthandler, os, subprocess, sys, time
from gnp_scale.resilience import lifeline
faulthandler.register(lifeline.STACKS_SIGNAL, 2)
command = [sys.executable, "-I", "-S", lifeline.__file__, str(os.getpid()), sys.argv[1]]
beside = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
for _ in range(int(sys.argv[2])):
    beside.stdin.write(b".")
    beside.stdin.flush()
    time.sleep(0.1)
if sys.argv[3] == "hang":
    time.sleep(600)
"""


def start_child(silence_s, num_beats, end):
    command = [sys.executable, "-c", CHILD, str(silence_s), str(num_beats), end]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_process_in_which_no_python_runs_is_killed_and_shows_its_stacks():
    child = start_child(4, 5, "hang")
    _, said = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert f"no Python ran in process {child.pid} for 4 s: killing it" in said
    assert "most recent call first" in said


@pytest.mark.slow
def test_a_process_that_is_stopped_or_ends_is_not_killed():
    child = start_child(4, 80, "end")
    time.sleep(2)
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(8)
    os.kill(child.pid, signal.SIGCONT)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (0, "")


def test_it_ends_with_the_process_that_it_watches():
    beside = subprocess.Popen([sys.executable, lifeline.__file__, str(os.getpid()), "600"], stdin=subprocess.PIPE)
    beside.communicate(timeout=30)
    assert beside.returncode == 0
