"""The record of a run's time: it adds up over restarts, survives a kill, and is shown without JAX."""

import json
import subprocess
import sys
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from launcher import Job, run

from gnp_scale import PROCESS_START_S, cli
from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.run import recorder as module
from gnp_scale.run.history import RunHistory, Start, read_history
from gnp_scale.run.layout import GOODPUT_FILE
from gnp_scale.run.recorder import Recorder, append, append_exit
from gnp_scale.run.stages import Stage, Stages
from gnp_scale.run.status import state

pytestmark = pytest.mark.usefixtures("unoptimized")


def start(began, ended, from_step, step, train, *, rolled_back=0, code=None, **seconds):
    return Start(began, ended, "train", from_step, step, rolled_back, 5.0, {"train": train} | seconds, code)


@pytest.mark.parametrize(
    ("starts", "num_lost_steps", "lost_s", "goodput", "down_s"),
    [
        ([], 0, 0.0, 0.0, 0.0),
        ([start(0, 100, 0, 50, 80, compile=20)], 0, 0.0, 0.8, 0.0),
        # Killed at step 50, resumed from 40; 60 steps made, 10 of them lost.
        ([start(0, 100, 0, 50, 60, start=40), start(150, 200, 40, 50, 30, start=20)], 10, 15.0, 75 / 200, 50.0),
        # The second start dies before it has caught up: its 5 steps are lost too.
        ([start(0, 40, 0, 20, 40), start(40, 50, 10, 15, 10), start(50, 70, 10, 20, 20)], 15, 30.0, 40 / 70, 0.0),
        # Dies before it knows its first step.
        ([start(0, 40, 0, 20, 40), start(40, 50, None, 0, 0, start=10), start(50, 60, 20, 30, 10)], 0, 0, 5 / 6, 0.0),
        ([start(0, 40, 0, 10, 40, rolled_back=10)], 10, 20.0, 0.5, 0.0),
    ],
    ids=["none", "one", "killed", "killed twice", "killed while starting", "rolled back"],
)
def test_the_life_of_a_run_adds_up(starts, num_lost_steps, lost_s, goodput, down_s):
    run_history = RunHistory(tuple(starts))
    assert run_history.num_lost_steps == num_lost_steps
    assert run_history.lost_s == pytest.approx(lost_s)
    assert run_history.goodput == pytest.approx(goodput)
    assert run_history.stage_s["down"] == down_s
    assert sum(run_history.stage_s.values()) == pytest.approx(run_history.wall_s)


def test_the_seconds_of_kept_steps_have_no_waits_of_steps_that_were_undone():
    """Killed at step 50, resumed from 40: 10 of 60 steps are lost, with their share of the waits for data."""
    starts = start(0, 100, 0, 50, 60, data=30), start(150, 200, 40, 50, 30, data=6)
    assert RunHistory(starts).kept_s == pytest.approx((90 + 36) * 5 / 6)
    assert RunHistory(()).kept_s == 0.0


SPANS = st.lists(
    st.tuples(
        st.floats(-1e9, 1e9),  # when it began, by a clock that jumps
        st.floats(0, 1e5),  # seconds in training
        st.floats(0, 1e5),  # and in other stages
        st.integers(0, 100),
        st.integers(0, 100),
    ),
    max_size=5,
)


@given(SPANS)
@example([(536870912.0, 0.00152127559, 0.0, 0, 0)])  # The clock rounds so short a time by 3e-5 of it.
def test_no_jump_of_the_clock_makes_time_negative(spans):
    """A record that lacks starts does not either: then more steps are lost than it contains."""
    run_history = RunHistory(
        tuple(
            start(began, began + train + other, from_step, step, train, compile=other)
            for began, train, other, from_step, step in spans
        )
    )
    assert 0 <= run_history.goodput <= 1
    assert run_history.wall_s >= 0
    assert all(seconds >= 0 for seconds in run_history.stage_s.values())
    assert sum(run_history.stage_s.values()) == pytest.approx(run_history.wall_s, abs=1e-3)


WHOLE = {
    "began": 1.0,
    "time": 2.0,
    "stage": "train",
    "from_step": 0,
    "step": 7,
    "num_rolled_back_steps": 0,
    "first_step_s": None,
    "seconds": {"train": 1.0},
}


@pytest.mark.parametrize(
    "damage",
    [
        {"began": 1.0, "exit": 0},
        WHOLE | {"seconds": [1.0]},
        WHOLE | {"seconds": {"train": "long"}},
        WHOLE | {"step": "7"},
        WHOLE | {"stage": None},
        WHOLE | {"exit": "finished"},
        {"time": 3.0, "exit": "75"},
        {"time": "later", "exit": 75},
        {"logged_step": 8.5},
        WHOLE | {"began": 1e20},
        WHOLE | {"time": float("inf")},
        WHOLE | {"seconds": {"train": float("nan")}},
    ],
    ids=str,
)
def test_a_damaged_line_counts_for_nothing(damage, tmp_path):
    (tmp_path / GOODPUT_FILE).write_text(f"{json.dumps(WHOLE)}\n{json.dumps(damage)}\n{'[' * 100_000}\n")
    assert read_history(tmp_path).starts == (Start(**WHOLE),)
    with Recorder(tmp_path, Stages(), is_writer=True) as recorder:
        assert recorder.history().stage_s["train"] == 1.0


def test_a_clock_that_is_set_back_changes_nothing_within_a_start(tmp_path, monkeypatch):
    times = iter([1e9, 1e8, 0.0, -1e9, -2e9])
    monkeypatch.setattr(module.time, "time", lambda: next(times))
    recorder = Recorder(tmp_path, Stages(), is_writer=True)
    recorder.go_on_from(0)
    lines = [recorder._line() for _ in range(3)]
    assert lines[0]["began"] <= lines[0]["time"] <= lines[1]["time"] <= lines[2]["time"]
    append(tmp_path / GOODPUT_FILE, lines[-1])
    append_exit(tmp_path, Exit.HUNG)
    (only,) = read_history(tmp_path).starts
    assert (only.time, only.exit) == (lines[-1]["time"], Exit.HUNG)
    assert Recorder(tmp_path, Stages(), is_writer=True).history().wall_s >= 0


@pytest.mark.parametrize(
    ("code", "age_s", "expected"),
    [
        (None, 5, "running: train"),
        (None, 1000, "dead: no sign of life for 1,000 s, last in train"),
        (Exit.FINISHED, 1000, "finished"),
        (Exit.PREEMPTED, 5, "preempted, saved"),
        (Exit.HUNG, 5, "hung"),
        (Exit.DIVERGED, 5, "diverged"),
        (Exit.FAILED, 5, "failed, exit code 1"),
    ],
)
def test_state_of_a_run(code, age_s, expected):
    assert state(RunHistory((start(0, 100, 0, 50, 80, code=code),)), now=100 + age_s) == expected


def test_a_run_that_was_not_started_says_so():
    assert state(RunHistory(()), now=0) == "not started"


def test_stages_account_for_every_second_once():
    stages = Stages()
    with stages.enter(Stage.TRAIN, 3):
        with stages.enter(Stage.SAVE, 4):
            time.sleep(0.05)
            assert (stages.now.stage, stages.now.step, stages.now.num_made_steps) == (Stage.SAVE, 4, 4)
        assert (stages.now.stage, stages.now.step, stages.now.num_made_steps) == (Stage.TRAIN, 4, 3)
    assert (stages.now.stage, stages.now.step, stages.now.num_made_steps) == (Stage.START, 4, 4)
    seconds = stages.now.seconds
    assert 0.05 <= seconds[Stage.SAVE] < 1.0
    assert seconds[Stage.TRAIN] < 0.05


def test_a_stop_belongs_to_no_stage():
    stages, began_s = Stages(), time.perf_counter()
    with stages.enter(Stage.SAVE, 4):
        time.sleep(0.05)
        stages.skip(0.04)
    assert 0.01 <= stages.now.seconds[Stage.SAVE] <= time.perf_counter() - began_s - 0.04
    with stages.enter(Stage.TRAIN, 5):
        stages.skip(600)
        assert 0 <= time.perf_counter() - stages.now.since_s < 60, "it was noticed late: in another stage"


def test_a_stop_that_a_new_stage_notices_first_belongs_to_no_stage():
    """A resumed process may enter its next stage before the thread that detects stops runs again."""
    stages, began_s = Stages(), time.perf_counter()
    with stages.enter(Stage.SAVE, 4):
        time.sleep(0.05)
        stages.before_move = lambda: stages.skip(0.04)
    assert 0.01 <= stages.now.seconds[Stage.SAVE] <= time.perf_counter() - began_s - 0.04


def test_a_machine_that_sleeps_is_down(tmp_path, monkeypatch):
    """The clock of the stages stops meanwhile, that of the record does not: the run does not count as dead."""
    with Recorder(tmp_path, Stages(), is_writer=True) as recorder:
        awake_s = recorder.history().wall_s
        clock_s = module.boot_s
        monkeypatch.setattr(module, "boot_s", lambda: clock_s() + 3600)
        run_history = recorder.history()
        assert run_history.wall_s == pytest.approx(awake_s + 3600, abs=60)
        assert run_history.stage_s["down"] == pytest.approx(3600, abs=1)
        assert state(run_history, now=time.time() + 3600).startswith("running")


def test_steps_that_were_undone_and_logged_steps_beyond_the_last_record_are_lost(tmp_path):
    with Recorder(tmp_path, Stages(), is_writer=True) as recorder:
        recorder.go_on_from(0)
        with recorder.stages.enter(Stage.SAVE, 30):
            recorder.go_on_from(20)
        with recorder.stages.enter(Stage.SAVE, 40):
            recorder.end(Exit.PREEMPTED)
    (tmp_path / "metrics.jsonl").write_text('{"step": 50, "train/loss": 1.0}\n{"step": 6')
    with Recorder(tmp_path, Stages(time.perf_counter()), is_writer=True) as recorder:
        recorder.go_on_from(35)
        recorder.end(Exit.FINISHED)
    first, second = read_history(tmp_path).starts
    assert (first.step, first.num_rolled_back_steps, first.exit) == (50, 10, Exit.PREEMPTED)
    assert (second.from_step, second.exit) == (35, Exit.FINISHED)
    assert read_history(tmp_path).num_lost_steps == 10 + 15


def test_the_life_of_the_process_before_a_later_run_is_none_of_its_time(tmp_path):
    time.sleep(0.3)
    with Recorder(tmp_path, Stages(time.perf_counter()), is_writer=True) as recorder:
        recorder.go_on_from(0)
        recorder.end(Exit.FINISHED)
    found, life_s = read_history(tmp_path), time.perf_counter() - PROCESS_START_S
    assert found.wall_s < life_s - 0.25
    assert found.stage_s[Stage.START] < life_s - 0.25


def test_an_error_closes_the_record(tmp_path):
    for error, code in ((ConfigError("no"), Exit.WRONG_CONFIG), (OSError("full"), Exit.FAILED)):
        with pytest.raises(type(error)), Recorder(tmp_path, Stages(), is_writer=True):
            raise error
        assert read_history(tmp_path).starts[-1].exit == code


def test_an_exit_that_another_process_told_stays(tmp_path):
    append(tmp_path / GOODPUT_FILE, WHOLE)
    append_exit(tmp_path, Exit.HUNG)
    append(tmp_path / GOODPUT_FILE, WHOLE | {"time": 3.0})
    with (tmp_path / GOODPUT_FILE).open("a") as file:
        file.write('{"began": 1.0, "ti')
    (only,) = read_history(tmp_path).starts
    assert (only.time, only.exit) == (3.0, Exit.HUNG)


def test_other_processes_write_nothing(tmp_path):
    with Recorder(tmp_path, Stages(), is_writer=False) as recorder:
        recorder.end(Exit.FINISHED)
    assert not (tmp_path / GOODPUT_FILE).exists()


def test_status_without_a_run_is_a_users_error(tmp_path, capsys):
    assert cli.main(["status", str(tmp_path / "nothing")]) == Exit.WRONG_CONFIG
    assert capsys.readouterr().err.count("\n") == 1


def test_status_needs_no_jax():
    """So that it starts at once, and works on a machine without accelerators."""
    code = "import sys, gnp_scale.cli, gnp_scale.run.status; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_a_run_that_was_killed_and_restarted_is_accounted_for(tmp_path):
    """SIGKILL in the middle, the status while it trains, and the sums at its end."""
    arguments = ["train", "tests/stuck.py:small", "--run-dir", str(tmp_path / "run"), "--train.num-steps", "2000"]
    job = Job(tmp_path / "killed", arguments)
    job.wait_for("step 21/2000")
    assert "running" in run(tmp_path / "status-1", "status", str(tmp_path / "run"))
    job.processes[0].kill()
    job.processes[0].wait()
    reached = read_metrics(tmp_path / "run")[-1]["step"]
    short = [*arguments[:-1], "2000", "--checkpoint.every-steps", "1000"]
    job = Job(tmp_path / "again", short)
    job.wait_for("step 60/2000")
    job.processes[0].terminate()
    assert job.exit_codes() == [Exit.PREEMPTED], job.output()

    run_history = read_history(tmp_path / "run")
    killed, stopped = run_history.starts
    assert killed.exit is None
    assert stopped.exit == Exit.PREEMPTED
    assert killed.step >= reached
    assert run_history.num_lost_steps == killed.step - stopped.from_step
    assert 0 < stopped.first_step_s < 200
    assert sum(run_history.stage_s.values()) == pytest.approx(run_history.wall_s, rel=0.01)
    last = [row for row in read_metrics(tmp_path / "run") if "perf/goodput" in row][-1]
    assert 0 < last["perf/goodput"] < 1
    text = run(tmp_path / "status-2", "status", str(tmp_path / "run"))
    assert "preempted, saved" in text
    assert f"{stopped.step} of 2,000" in text
    assert json.loads((tmp_path / "run" / GOODPUT_FILE).read_text().splitlines()[-1])["exit"] == Exit.PREEMPTED
