"""Signals: one agreed step in every process, within the grace time, from the first moment of a process."""

import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from launcher import Job

from gnp_scale import preemption, rundir
from gnp_scale.config import Config, ConfigError, TrainConfig
from gnp_scale.grace import VARIABLE, Position, grace_s, make_plan
from gnp_scale.outlook import Outlook
from gnp_scale.preemption import StopRequest
from gnp_scale.rundir import claimed
from gnp_scale.stages import Moment, Stage, Stages

LONG_S = 1e6
FITS = Position(passed=10, num_steps=100, needed_s=3.0, left_s=27.0)
LATE = Position(passed=10, num_steps=100, needed_s=30.0, left_s=27.0)
AHEAD = Position(passed=12, num_steps=100, needed_s=3.0, left_s=27.0)
HURRIED = Position(passed=10, num_steps=100, needed_s=0.0, left_s=2.0)
COMPILING = Position(passed=None, num_steps=0, needed_s=0.0, left_s=27.0)
AT_END = Position(passed=100, num_steps=100, needed_s=99.0, left_s=27.0)

PLANS = {
    "one process": ([FITS], 11, "saving after step 11 is expected to take 3.0 s of the 27.0 s left"),
    "the first step that none has passed": ([FITS, AHEAD, FITS], 13, "saving after step 13"),
    "a save that does not fit": ([LATE], None, "it does not fit"),
    "one process that is slow to save": ([FITS, LATE], None, "30.0 s of the 27.0 s left"),
    "one process that heard late": ([FITS, HURRIED], None, "3.0 s of the 2.0 s left"),
    "nothing measured yet": ([HURRIED], 11, "0.0 s of the 2.0 s left"),
    "a process that still compiles": ([FITS, COMPILING], None, "nothing new to save"),
    "the end of the run": ([AT_END, AT_END], 100, "the last step is made"),
}


@pytest.mark.parametrize(("positions", "stop_at", "reason"), PLANS.values(), ids=PLANS.keys())
def test_the_plan_follows_from_where_all_processes_stand(positions, stop_at, reason):
    plan = make_plan(positions)
    assert plan.stop_at == stop_at
    assert reason in plan.reason


@pytest.mark.parametrize("text", ["", "soon", "0", "-3", "nan", "inf"])
def test_a_grace_time_that_is_none_is_a_mistake_in_one_line(text, monkeypatch):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=VARIABLE):
        grace_s()


@pytest.fixture(autouse=True)
def long_grace(monkeypatch):
    """At the end of a grace time the process that runs the tests would end, too."""
    monkeypatch.setenv(VARIABLE, str(LONG_S))


class LeftError(Exception):
    """Stands for the end of a process."""


class FakeRun:
    """A run of 1000 steps whose save takes `needed_s`."""

    num_steps = 1000

    def __init__(self, needed_s=0.0, writes_for_s=0.0):
        self._needed_s, self._written_s = needed_s, time.monotonic() + writes_for_s

    def needed_s(self, step):
        return self._needed_s

    @property
    def is_writing(self):
        return time.monotonic() < self._written_s

    def leave(self):
        return "3 steps are lost"


@pytest.fixture
def left(monkeypatch):
    """Exit codes of processes that have left; leaving raises LeftError in their threads."""
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
    stop.begin(FakeRun(), 7)
    assert not stop.reached(8)
    stop.ask("SIGTERM")
    assert [stop.reached(step) for step in (9, 10)] == [True, True]


def test_a_save_that_does_not_fit_is_not_tried_and_the_lost_steps_are_told(left, capsys):
    stop = alone()
    stop.begin(FakeRun(needed_s=LONG_S), 7)
    with pytest.raises(LeftError):
        stop.ask("SIGUSR1")
    assert left == [75]
    said = capsys.readouterr().err
    assert "SIGUSR1: saving after step 8 is expected to take 1000000.0 s" in said
    assert "it does not fit; 3 steps are lost" in said


def test_a_save_under_way_is_waited_for_before_leaving(left):
    stop = alone()
    stop.begin(FakeRun(needed_s=LONG_S, writes_for_s=0.3), 7)
    began_s = time.monotonic()
    with pytest.raises(LeftError):
        stop.ask("SIGTERM")
    assert time.monotonic() - began_s >= 0.3


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_the_grace_time_ends_what_is_stuck(left, monkeypatch):
    """The process ends even where its last words are never over."""
    monkeypatch.setenv(VARIABLE, "0.5")
    monkeypatch.setattr(preemption, "_LAST_WORDS_S", 0.2)
    # For ever: once the test is over, leaving would end the process that runs the tests.
    monkeypatch.setattr(FakeRun, "leave", lambda self: threading.Event().wait())
    stop = alone()
    stop.begin(FakeRun(), 7)
    stop.ask("SIGINT")
    time.sleep(0.4)
    assert not left
    time.sleep(1)
    assert left == [75]


def outlook_at(moment, is_writing=False):
    """Of a run from step 20 on with an evaluation every 10 steps, and the exit codes its record was closed with."""
    longest_s = dict.fromkeys(Stage, 0.0) | {Stage.EVALUATE: 7.0, Stage.SAVE: 2.0, Stage.COMPILE: 100.0}
    codes = []
    recorder = SimpleNamespace(stages=SimpleNamespace(now=moment, longest_s=longest_s), end=codes.append)
    checkpoints = SimpleNamespace(longest_commit_s=5.0, is_writing=is_writing, stored_step=25)
    config = Config(train=TrainConfig(num_steps=100, eval_every_steps=10))
    return Outlook(config, 20, recorder, checkpoints), codes


# Ten steps in 8 s, and 2 s of waiting for data.
SECONDS = dict.fromkeys(Stage, 0.0) | {Stage.TRAIN: 8.0, Stage.DATA: 2.0, Stage.COMPILE: 100.0}
TRAINING = Moment(Stage.TRAIN, 31, 0.0, SECONDS)


def test_a_save_is_expected_to_take_what_its_parts_have_taken():
    step_s, evaluate_s, stage_s, commit_s = 1.0, 7.0, 2.0, 5.0
    outlook, _ = outlook_at(TRAINING)
    assert outlook.needed_s(31) == step_s + stage_s + commit_s
    assert outlook.needed_s(40) == outlook.needed_s(100) == step_s + evaluate_s + stage_s + commit_s
    outlook, _ = outlook_at(TRAINING, is_writing=True)
    assert outlook.needed_s(31) == step_s + stage_s + 2 * commit_s
    nothing_measured, _ = outlook_at(Moment(Stage.TRAIN, 21, 0.0, SECONDS))
    assert nothing_measured.needed_s(21) == stage_s + commit_s


def test_a_save_that_is_being_staged_counts_as_under_way():
    assert outlook_at(Moment(Stage.SAVE, 30, 0.0, SECONDS))[0].is_writing
    assert not outlook_at(TRAINING)[0].is_writing


def test_leaving_closes_the_record_and_counts_the_steps_that_are_lost():
    outlook, codes = outlook_at(TRAINING)
    assert outlook.leave() == "the newest checkpoint is of step 25, 5 steps are lost"
    assert codes == [75]


def test_the_longest_visit_to_a_stage_is_kept_with_what_is_nested_in_it():
    stages = Stages()
    for seconds in (0.0, 0.05, 0.0):
        with stages.enter(Stage.SAVE, 1), stages.enter(Stage.DATA, 1):
            time.sleep(seconds)
    assert 0.05 <= stages.longest_s[Stage.DATA] <= stages.longest_s[Stage.SAVE] < 5
    assert stages.longest_s[Stage.EVALUATE] == 0


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
    """Each may be a few steps ahead of another, as dispatch is asynchronous; signals come to one of them or to all."""
    rng, store, num_processes = random.Random(seed), Store(), 4
    stops = [StopRequest() for _ in range(num_processes)]
    steps, ends = [0] * num_processes, [0] * num_processes

    def train(rank):
        own = random.Random(f"{seed} {rank}")
        stops[rank].begin(FakeRun(), 0)
        for step in range(1, 1000):
            while step > min(steps) + 3:
                time.sleep(0.0002)
            time.sleep(own.random() * 0.002)
            if stops[rank].reached(step):
                steps[rank] = 1000
                ends[rank] = step
                return
            steps[rank] = step

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
    assert 0 < ends[0] < 999
    assert ends == [ends[0]] * num_processes


def test_a_run_folder_has_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "_LOCK_WAIT_S", 0.0)
    with (
        claimed(tmp_path, Config()),
        pytest.raises(ConfigError, match=r"is in use by process \d+ on"),
        claimed(tmp_path, Config()),
    ):
        pass
    with claimed(tmp_path, Config()):
        pass


@pytest.mark.parametrize(
    ("numbers", "wait_s", "grace", "code"),
    [
        ([signal.SIGTERM], 0, "0.3", 75),
        ([signal.SIGINT, signal.SIGINT], 0, "1.5", 75),
        ([signal.SIGINT, signal.SIGINT], 1.1, "60", 130),
        ([signal.SIGUSR1, signal.SIGTERM], 1.1, "1.5", 75),
    ],
    ids=["never joined", "Ctrl-C that a launcher passes on", "second Ctrl-C", "other second signal"],
)
def test_a_process_that_is_stuck_ends(numbers, wait_s, grace, code, monkeypatch):
    monkeypatch.setenv(VARIABLE, grace)
    program = (
        "import time; from gnp_scale.preemption import StopRequest; StopRequest().watch(); print(); time.sleep(60)"
    )
    command = [sys.executable, "-u", "-c", program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        for number in numbers:
            process.send_signal(number)
            time.sleep(wait_s)
        assert process.wait(30) == code


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the signal mask of a process from /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda number: number.name)
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
