"""Signals: one agreed step in every process, within the grace time, from the first moment of a process."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from launcher import Job

from gnp_scale.config import ConfigError
from gnp_scale.resilience import preemption
from gnp_scale.resilience.grace import VARIABLE, grace_s
from gnp_scale.resilience.preemption import EVALUATED, Position, StopRequest, make_plan

pytestmark = pytest.mark.usefixtures("unoptimized")

LONG_S = 1e6
NUM_STEPS = 100

PLANS = {
    "one process": ([(1, 10)], (1, 11), "saving after step 11"),
    "the first step that none has passed": ([(1, 10), (1, 12), (1, 10)], (1, 13), "saving after step 13"),
    "a process that still compiles": ([(1, 10), (0, 0)], None, "nothing new to save"),
    "the end of the run": ([(1, NUM_STEPS), (1, 99)], (1, NUM_STEPS), "the last step is made"),
    "inside an evaluation": ([(1, 10, 3), (1, 10, 4), (1, 9)], (1, 10, 5), "saving after step 10 without"),
    "inside the last evaluation": ([(1, NUM_STEPS, 1)], (1, NUM_STEPS, 2), "saving after step 100 without"),
    "after an evaluation": ([(1, 10, EVALUATED), (1, 10, 4)], (1, 11), "saving after step 11"),
    "after the last evaluation": ([(1, NUM_STEPS, EVALUATED)], (1, NUM_STEPS, EVALUATED), "the last step is made"),
    "after a rollback": ([(2, 10), (2, 11)], (2, 12), "saving after step 12"),
    "one process has begun again and one not yet": ([(2, 10), (1, 90)], (2, 11), "saving after step 11"),
    "one has made the last step and one has gone back": ([(1, NUM_STEPS), (2, 90)], (2, 91), "saving after step 91"),
}


@pytest.mark.parametrize(("positions", "stop_at", "reason"), PLANS.values(), ids=PLANS.keys())
def test_the_plan_follows_from_where_all_processes_stand(positions, stop_at, reason):
    plan = make_plan([Position(*position) for position in positions], NUM_STEPS)
    assert plan.stop_at == (stop_at and Position(*stop_at))
    assert reason in plan.reason


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "inf"])
def test_a_grace_time_that_is_none_is_a_mistake_in_one_line(text, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=VARIABLE):
        grace_s()


@pytest.fixture(autouse=True)
def long_grace(monkeypatch):
    """Otherwise the end of a grace time would end the process that runs the tests."""
    monkeypatch.setenv(VARIABLE, str(LONG_S))


class LeftError(Exception):
    """Replaces the end of a process."""


def begin(stop, start=7, leave=lambda: "3 steps are lost"):
    """A run of 1000 steps resumes after `start`."""
    stop.begin(start, 1000, leave)


@pytest.fixture
def left(monkeypatch):
    """Exit codes of processes that have exited; an exit raises LeftError in their threads."""
    codes = []

    def leave(code):
        codes.append(code)
        raise LeftError

    monkeypatch.setattr(preemption.os, "_exit", leave)
    return codes


def alone():
    stop = StopRequest()
    stop.joined(None, 0, 1)
    return stop


def test_one_process_stops_after_the_next_step():
    stop = alone()
    begin(stop)
    assert not stop.reached(8)
    stop.ask("SIGTERM")
    assert [stop.reached(step) for step in (9, 10)] == [True, True]


def test_an_evaluation_stops_before_its_next_batch_or_at_its_end():
    for passed, rest in [([1], [2]), ([1, 2, 3], [4, 5]), ([1, 2, 3], [EVALUATED])]:
        stop = alone()
        begin(stop)
        assert not any(stop.reached(8, batch) for batch in passed)
        stop.ask("SIGTERM")
        assert all(stop.reached(8, batch) for batch in rest)


def test_a_stop_planned_before_a_rollback_comes_after_the_first_step_that_follows_it(capsys):
    stop = alone()
    begin(stop, 900)
    assert not stop.reached(950)
    stop.ask("SIGTERM")
    assert "SIGTERM: saving after step 951, within" in capsys.readouterr().err
    begin(stop, 920)
    assert stop.reached(921)
    assert capsys.readouterr().err == "gnp-scale: after the rollback, saving after step 921 instead\n"


def test_leaving_before_the_run_trains_loses_no_step(left, capsys):
    with pytest.raises(LeftError):
        alone().ask("SIGUSR2")
    assert left == [75]
    assert "SIGUSR2: there is nothing new to save since the start; no step is lost" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_run_that_has_ended_is_not_closed_again(left, monkeypatch, capsys):
    """A process may make several runs: when the grace time is over between two, the first one has lost nothing."""
    monkeypatch.setenv(VARIABLE, "0.2")
    monkeypatch.setattr(preemption, "_LAST_WORDS_S", 0.2)
    stop = alone()
    begin(stop)
    stop.close()
    stop.ask("SIGTERM")
    while len(left) < 2:
        time.sleep(0.05)
    assert "no step is lost" in capsys.readouterr().err


def test_a_process_leaves_although_it_cannot_say_what_is_lost(left, capsys):
    stop = alone()
    begin(stop, leave=lambda: 1 / 0)
    with pytest.raises(LeftError):
        stop._leave("SIGTERM")
    assert left == [75]
    assert "SIGTERM; what is lost is not known (ZeroDivisionError: division by zero)" in capsys.readouterr().err


def test_a_run_that_failed_does_not_say_that_nothing_is_lost(left, capsys):
    """It waits for the others, of which one may have died."""
    stop = alone()
    with contextlib.suppress(ZeroDivisionError), stop:
        begin(stop)
        raise ZeroDivisionError
    with pytest.raises(LeftError):
        stop._leave("SIGTERM")
    assert "SIGTERM; the run had failed, and its steps since the newest checkpoint are lost" in capsys.readouterr().err


def test_a_plan_that_fails_gives_back_the_lock(monkeypatch):
    """Otherwise the main thread would wait in `reached` until the grace time is over, and its steps would be lost."""
    stop = alone()
    begin(stop)
    monkeypatch.setattr(preemption, "make_plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stop.ask("SIGTERM")
    assert not stop.reached(8)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_grace_time_ends_what_is_stuck(left, monkeypatch, capsys):
    """The process ends even if its last message blocks for ever."""
    monkeypatch.setenv(VARIABLE, "0.5")
    monkeypatch.setattr(preemption, "_LAST_WORDS_S", 0.2)
    stop = alone()
    # For ever: after the test, an exit would end the process that runs the tests.
    begin(stop, leave=lambda: threading.Event().wait())
    stop.ask("SIGINT")
    time.sleep(0.4)
    assert not left
    time.sleep(1.5)
    assert left == [75]
    assert capsys.readouterr().err == (
        "gnp-scale: SIGINT: saving after step 8, within 0.45 s\n"
        "gnp-scale: the grace time of 0.5 s is over (GNP_SCALE_GRACE_S); the run folder does not answer, so what is "
        "lost is not known: start the same command again to go on\n"
    )


class Store:
    """The key-value store of the coordination service."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value, allow_overwrite=False):
        with self._changed:
            assert allow_overwrite or key not in self._values
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, timeout_ms):
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, timeout_ms / 1000)
            return self._values[key]


@pytest.mark.parametrize("seed", range(20))
def test_processes_at_different_steps_stop_after_the_same_one(seed):
    """Each may be a few steps, or batches of an evaluation, ahead of another, because dispatch is asynchronous; one or
    all of them get signals.

    Ten pass their steps through another one to process 0.
    """
    batches = (1, 2, 3, 4, 5, EVALUATED)
    points = [(step, batch) for step in range(1, 300) for batch in (batches if step % 3 == 0 else (0,))]
    rng, store, num_processes = random.Random(seed), Store(), 10 if seed % 4 == 0 else 4
    stops = [StopRequest() for _ in range(num_processes)]
    passed, ends = [0] * num_processes, [(0, 0)] * num_processes

    def train(rank):
        own = random.Random(f"{seed} {rank}")
        begin(stops[rank], 0)
        for number, point in enumerate(points):
            while number > min(passed) + 3:
                time.sleep(0.0002)
            time.sleep(own.random() * 0.002)
            if stops[rank].reached(*point):
                passed[rank] = len(points)
                ends[rank] = point
                return
            passed[rank] = number

    for rank, stop in enumerate(stops):
        stop.joined(store, rank, num_processes)
    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(num_processes)]
    for thread in threads:
        thread.start()
    time.sleep(0.02 + rng.random() * 0.02)
    for rank in rng.sample(range(num_processes), rng.choice([1, num_processes])):
        stops[rank].ask("SIGTERM")
    for thread in threads:
        thread.join(30)
    assert (0, 0) < ends[0] < points[-1]
    assert ends == [ends[0]] * num_processes


@pytest.mark.parametrize("seed", range(20))
def test_processes_that_roll_back_stop_after_the_same_step(seed):
    """A notice may reach them when some have rolled back to an earlier step and others have not."""
    rng, store, num_processes = random.Random(seed), Store(), 3
    stops = [StopRequest() for _ in range(num_processes)]
    ends = [(0, 0)] * num_processes
    in_step = threading.Barrier(num_processes)

    def train(rank):
        own = random.Random(f"{seed} {rank}")
        for attempt, (start, last) in enumerate([(0, 8), (5, 40)], start=1):
            begin(stops[rank], start)
            for step in range(start + 1, last):
                time.sleep(own.random() * 0.004)
                if stops[rank].reached(step):
                    ends[rank] = attempt, step
                    return
                in_step.wait(30)

    for rank, stop in enumerate(stops):
        stop.joined(store, rank, num_processes)
    threads = [threading.Thread(target=train, args=(rank,)) for rank in range(num_processes)]
    for thread in threads:
        thread.start()
    time.sleep(rng.random() * 0.04)
    stops[rng.randrange(num_processes)].ask("SIGTERM")
    for thread in threads:
        thread.join(30)
    assert ends[0] > (0, 0)
    assert ends == [ends[0]] * num_processes


@pytest.mark.parametrize(
    ("numbers", "wait_s", "grace", "code"),
    [
        ([signal.SIGTERM], 0, "0.3", 75),
        ([signal.SIGINT, signal.SIGINT], 0, "1.5", 75),
        ([signal.SIGINT, signal.SIGINT], 1.1, "60", 130),
        ([signal.SIGUSR1, signal.SIGTERM], 1.1, "1.5", 75),
        ([signal.SIGHUP], 0, "0.3", 75),
        ([signal.SIGUSR2, signal.SIGXCPU], 0, "0.3", 75),
    ],
    ids=[
        "never joined",
        "Ctrl-C that a launcher passes on",
        "second Ctrl-C",
        "other second signal",
        "closed terminal",
        "signals of batch systems",
    ],
)
def test_a_process_that_is_stuck_ends(numbers, wait_s, grace, code, monkeypatch):
    monkeypatch.setenv(VARIABLE, grace)
    program = "from gnp_scale.resilience.preemption import StopRequest; StopRequest().watch(); print()"
    program += "; import time; time.sleep(60)"
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for number in numbers:
            process.send_signal(number)
            time.sleep(wait_s)
        assert process.wait(30) == code


def test_a_signal_while_python_shuts_down_changes_nothing(monkeypatch):
    def start(thread):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
    try:
        signal.raise_signal(signal.SIGUSR2)
        stop = StopRequest()
        monkeypatch.setattr(preemption.threading.Thread, "start", start)
        stop._await_signals([signal.SIGUSR2])
        assert not stop.reached(1)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_under_nohup_the_end_of_the_terminal_is_not_noticed(monkeypatch):
    """The terminal's SIGHUP is ignored, and the SIGTERM that follows is the first signal that counts."""
    monkeypatch.setenv(VARIABLE, "0.3")
    program = (
        "import signal, time; signal.signal(signal.SIGHUP, signal.SIG_IGN); "
        "from gnp_scale.resilience.preemption import StopRequest; StopRequest().watch(); print(); time.sleep(60)"
    )
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 75


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the signal mask of a process from /proc")
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.long), signal.SIGINT],
    ids=lambda number: number.name,
)
def test_a_signal_before_the_libraries_are_imported_is_not_lost(number, tmp_path):
    job = Job(tmp_path / "log", ["train", "configs/digits.py:quickstart", "--run-dir", str(tmp_path / "run")])
    while not _blocks(job.processes[0].pid, number):
        assert job.is_whole
        time.sleep(0.001)
    job.processes[0].send_signal(number)
    assert job.exit_codes() == [75], job.output()
    assert f"{number.name}: there is nothing new to save" in job.output()
    assert not (tmp_path / "run").exists()


def _blocks(pid, number):
    mask = Path(f"/proc/{pid}/status").read_text().partition("SigBlk:")[2].split()[0]
    return bool(int(mask, 16) >> (number - 1) & 1)
