"""A run that hangs ends: it names the late process, keeps all stacks, and its exit code asks for a restart.

Real processes freeze (SIGSTOP), hang and die as they enter a stage; `tests/stuck.py` is their recipe.
"""

import signal
import time

import jax
import pytest
from launcher import Job

from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.resilience import watchdog
from gnp_scale.resilience.reports import Report, find_late, find_silent
from gnp_scale.resilience.watchdog import Watchdog
from gnp_scale.run.budgets import DEFAULTS_S, VARIABLE, budgets_s
from gnp_scale.run.history import read_history
from gnp_scale.run.stages import Stage, Stages

pytestmark = pytest.mark.usefixtures("unoptimized")

BOUND_S = 90


def report(rank, stage, moment, in_stage_s, beat=5, heard_s=100.0):
    return Report(rank, f"host{rank}", stage, 7, in_stage_s, moment, beat, heard_s)


@pytest.mark.parametrize(
    ("reports", "named"),
    [
        ([report(0, Stage.TRAIN, 20, 59), report(1, Stage.SAVE, 20, 299)], None),
        ([report(0, Stage.TRAIN, 20, 500), report(1, Stage.SAVE, 19, 299)], None),
        ([report(0, Stage.TRAIN, 20, 500), report(1, Stage.SAVE, 19, 301)], "process 1 on host1 is in save of step 7"),
        ([report(0, Stage.EVALUATE, 21, 301), report(1, Stage.TRAIN, 20, 61)], "process 1 on host1 is in train of"),
        ([report(0, Stage.TRAIN, 20, 61), report(1, Stage.TRAIN, 20, 64)], "64 s, as are 1 of the others"),
        ([report(0, Stage.TRAIN, 21, 1), report(1, Stage.TRAIN, 20, 1, heard_s=30.0)], "for 71 s (allowed: train=60)"),
    ],
    ids=["within", "waits for one within", "waits for one late", "a stage behind", "longest", "not heard of since"],
)
def test_whoever_holds_up_the_others_is_named(reports, named):
    """The processes that wait for it may exceed their budget before it, or with it."""
    budgets = dict.fromkeys(map(str, Stage), 300.0) | {"train": 60.0}
    verdict = find_late(reports, 100.0, budgets)
    assert verdict is None if named is None else named in verdict


def test_the_longest_silent_process_is_named_and_one_that_was_never_heard_after_longer():
    budgets = {"silence": 45.0, "join": 300.0}
    reports = [report(0, Stage.TRAIN, 7, 1, heard_s=50.0), report(1, Stage.SAVE, 7, 1, heard_s=40.0)]
    unheard = report(2, Stage.START, 0, 0, beat=0, heard_s=0.0)
    assert find_silent([*reports, unheard], 84.0, budgets) is None
    assert find_silent([*reports, unheard], 86.0, budgets).startswith("process 1 on host1 is in save of step 7 and si")
    assert find_silent([unheard], 299.0, budgets) is None
    assert find_silent([unheard], 301.0, budgets).endswith("silent for 301 s (allowed: join=300)")


@pytest.mark.parametrize("text", ["train", "train=", "train=-1", "train=nan", "training=60", "train=60;save=5"])
def test_budgets_that_cannot_be_read_are_a_users_error(monkeypatch, text):
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match="write it as"):
        budgets_s()


def test_budgets_are_replaced_one_by_one(monkeypatch):
    monkeypatch.setenv(VARIABLE, "train=60,silence=5")
    assert budgets_s() == DEFAULTS_S | {"train": 60.0, "silence": 5.0}


@pytest.mark.parametrize(
    ("error", "waits"),
    [
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed"), True),
        # As `jax.device_get` raises it.
        (ValueError("UNKNOWN: Gloo all-reduce failed: Connection reset by peer"), True),
        (ValueError("shapes do not match"), False),
        (ConfigError("JAX_PLATFORMS is gpu: there is none"), False),
        (None, False),
    ],
)
def test_an_error_that_the_death_of_another_process_may_cause_waits_for_the_cause(error, waits):
    assert watchdog._is_of_runtime(error) == waits


def test_an_old_process_has_time_to_start(monkeypatch):
    """A notebook that has been open for an hour may train: no budget is charged for the time before."""
    monkeypatch.setattr("gnp_scale.run.stages.PROCESS_START_S", time.perf_counter() - 3600)
    monkeypatch.setenv(VARIABLE, "start=0.5")
    with Watchdog(Stages(), None) as watchdog:
        assert watchdog._judge() is None
        time.sleep(0.6)
        assert "is in start of step 0 for 1 s (allowed: start=0.5)" in watchdog._judge()


@pytest.fixture
def stuck(monkeypatch, tmp_path):
    """Starts a run in which a process gets stuck: which, in which stage, and how."""

    def start(*acts, num_processes=2, run="run", num_steps=12, log_every=3, **budgets_s):
        monkeypatch.setenv("GNP_SCALE_TEST_STUCK", ",".join(acts))
        monkeypatch.setenv(VARIABLE, ",".join(f"{name}={seconds}" for name, seconds in budgets_s.items()))
        arguments = ["train", "tests/stuck.py:small", "--run-dir", str(tmp_path / run)]
        arguments += ["--train.num-steps", str(num_steps), "--train.log-every-steps", str(log_every)]
        return Job(tmp_path / f"logs-{run}", arguments, num_processes=num_processes, num_devices=4)

    return start


def end(job, rank):
    """Exit codes of all but the process `rank`, which cannot end by itself and is killed after them."""
    try:
        return [process.wait(BOUND_S) for n, process in enumerate(job.processes) if n != rank]
    finally:
        for process in job.processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def check_freeze(stuck, tmp_path, rank, stage):
    if stage == Stage.RESTORE:
        # Only a resumed run restores.
        assert stuck(num_processes=1).exit_codes() == [0]
        (tmp_path / "run" / "checkpoints" / "12").rename(tmp_path / "12")
    job = stuck(f"{rank}:{stage}:freeze", silence=10)
    codes, output = end(job, rank), job.output()
    assert codes == [Exit.HUNG], output
    assert f"process {rank} on " in output, output
    assert f"is in {stage} of step" in output, output
    stacks = (tmp_path / "run" / f"stacks-{1 - rank}.txt").read_text()
    assert f"is in {stage} of step" in stacks
    assert "in _watch" in stacks
    assert "in train" in stacks, "the main thread's stack is there as well"


@pytest.mark.slow
def test_a_frozen_process_0_is_found(stuck, tmp_path):
    """It hosts the service through which the others would get its reports."""
    check_freeze(stuck, tmp_path, 0, Stage.TRAIN)
    assert read_history(tmp_path / "run").starts[-1].exit == Exit.HUNG


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", Stage)
def test_a_frozen_process_is_found_in_every_stage(stuck, tmp_path, rank, stage):
    check_freeze(stuck, tmp_path, rank, stage)


@pytest.mark.slow
def test_a_process_that_hangs_alive_is_named_and_all_end(stuck, tmp_path):
    """It still sends reports, but its main thread is stuck in a library."""
    job = stuck("1:data:hang_in_native_code", data=10)
    assert job.exit_codes() == [Exit.HUNG, Exit.HUNG], job.output()
    assert all("process 1 on " in log.read_text() for log in job.logs), job.output()
    assert "is in data of step 6" in job.output()
    assert "enter_and_act" in (tmp_path / "run" / "stacks-1.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code", "expected"),
    [
        pytest.param("hang_in_native_code", Exit.HUNG, "process 0 on ", marks=pytest.mark.long),
        ("hang_with_the_lock", -signal.SIGKILL, "no Python ran in process "),
    ],
)
def test_a_single_process_that_hangs_ends(stuck, how, code, expected):
    """Even if a library holds Python's lock, and no Python code runs."""
    job = stuck(f"0:save:{how}", num_processes=1, save=12, silence=6)
    assert job.exit_codes() == [code], job.output()
    assert expected in job.output()
    assert "in enter_and_act" in job.output()


@pytest.mark.long
@pytest.mark.parametrize("stage", ["recipe", "data", "save"])
def test_the_others_end_within_a_minute_of_a_killed_process(stuck, stage):
    """Nothing told them: no last report and no signal. It may have joined without sending a report yet."""
    job = stuck(f"1:{stage}:die", silence=10, join=25)
    job.processes[1].wait(BOUND_S)
    killed_s = time.monotonic()
    codes, output = end(job, 1), job.output()
    assert codes == [Exit.HUNG], output
    assert time.monotonic() - killed_s < 60
    assert "process 1 on" in output
    assert "silent for" in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "stage", "how", "code", "said"),
    [
        (0, "evaluate", "fail", Exit.FAILED, "failed at step 5: OSError: no such disk"),
        (1, "start", "refuse", Exit.WRONG_CONFIG, "failed at step 0: ConfigError: no data set here"),
        (0, "recipe", "refuse", Exit.WRONG_CONFIG, "failed: no data set here"),
        pytest.param(1, "recipe", "refuse", Exit.WRONG_CONFIG, "no data set here", marks=pytest.mark.long),
        pytest.param(1, "evaluate", "fail", Exit.FAILED, "failed at step 5: OSError", marks=pytest.mark.long),
        pytest.param(1, "compile", "refuse", Exit.WRONG_CONFIG, "no data set here", marks=pytest.mark.long),
        pytest.param(0, "save", "refuse", Exit.WRONG_CONFIG, "failed at step 8: ConfigError", marks=pytest.mark.long),
        pytest.param(1, "save", "refuse", Exit.WRONG_CONFIG, "failed at step 8: ConfigError", marks=pytest.mark.long),
    ],
)
def test_a_process_that_fails_ends_the_others_with_its_code(stuck, tmp_path, rank, stage, how, code, said):
    """So a scheduler that uses the highest code, or the first, does not restart a run that cannot succeed."""
    job = stuck(f"{rank}:{stage}:{how}", silence=30)
    assert job.exit_codes() == [code, code], job.output()
    told = job.logs[1 - rank].read_text()
    assert f"process {rank} on" in told
    assert said in told
    if stage in ("evaluate", "save"):
        assert read_history(tmp_path / "run").starts[-1].exit == code


@pytest.mark.long
def test_of_two_that_fail_at_once_each_has_its_own_code(stuck):
    job = stuck("0:evaluate:fail", "1:evaluate:refuse", silence=30)
    assert job.exit_codes() == [Exit.FAILED, Exit.WRONG_CONFIG], job.output()


def stop_for(processes, seconds):
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    for process in processes:
        process.send_signal(signal.SIGCONT)


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, pytest.param(2, marks=pytest.mark.long)])
def test_a_run_that_was_stopped_goes_on(stuck, tmp_path, num_processes):
    """For longer than any of its own timeouts, and than twice the silence."""
    job = stuck(num_processes=num_processes, num_steps=24, silence=3, train=15, data=15, evaluate=15, save=15)
    job.wait_for("step 6/24")
    stop_for(job.processes, 20)
    assert job.exit_codes() == [0] * num_processes, job.output()
    assert f"process {num_processes - 1} was stopped for" in job.output()
    life = read_history(tmp_path / "run")
    assert life.stage_s["down"] > 15
    assert life.num_lost_steps == 0


@pytest.mark.slow
def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_compiler(stuck, tmp_path):
    """In one process, while the other waits for it before their first evaluation. The next start makes that."""
    job = stuck("1:compiler:hang", log_every=5)
    job.wait_for("step 5/12")
    job.processes[0].send_signal(signal.SIGTERM)
    assert job.exit_codes() == [Exit.PREEMPTED] * 2, job.output()
    assert "saving after step 5 without waiting for its evaluation" in job.output()
    assert "stopped after step 5 and saved" in job.output()
    job = stuck(num_processes=1, log_every=5)
    assert job.exit_codes() == [0], job.output()
    assert "evaluating step 5, which was saved without its evaluation" in job.output()


@pytest.mark.long
@pytest.mark.parametrize("stage", ["start", "compile", "evaluate", "save"])
def test_a_run_may_be_stopped_in_any_stage(stuck, stage):
    job = stuck(f"0:{stage}:announce", f"1:{stage}:announce", silence=3, join=30, **{stage: 40})
    job.wait_for("here I am")
    stop_for(job.processes, 45)
    assert job.exit_codes() == [0, 0], job.output()


@pytest.mark.long
def test_a_run_may_be_stopped_while_it_joins(stuck):
    job = stuck(silence=3, join=40)
    job.processes[1].send_signal(signal.SIGSTOP)
    time.sleep(10)
    stop_for(job.processes, 60)
    assert job.exit_codes() == [0, 0], job.output()


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_was_stopped_alone_ends_after_the_others(stuck, rank):
    """Without process 0, JAX aborts it, or it gets no reports."""
    job = stuck(num_steps=5000, silence=5)
    job.wait_for("step 6/5000")
    job.processes[rank].send_signal(signal.SIGSTOP)
    assert job.processes[1 - rank].wait(BOUND_S) == Exit.HUNG, job.output()
    job.processes[rank].send_signal(signal.SIGCONT)
    assert job.processes[rank].wait(BOUND_S) in (Exit.HUNG, -signal.SIGABRT), job.output()


@pytest.mark.slow
def test_an_evaluation_leaves_the_folder_as_it_was(stuck, tmp_path, monkeypatch):
    """Even if it hangs next to a run: its messages are not about the run."""
    assert stuck(num_processes=1).exit_codes() == [0]
    run_dir = tmp_path / "run"
    before = {path: path.stat().st_mtime_ns for path in [run_dir, *run_dir.rglob("*")]}
    evaluation = Job(tmp_path / "logs-eval", ["eval", str(run_dir)], num_devices=4)
    assert evaluation.exit_codes() == [0], evaluation.output()
    # An evaluation in many small batches takes longer than any such budget.
    monkeypatch.setenv(VARIABLE, "evaluate=0.001,silence=1")
    hung = Job(tmp_path / "logs-hung", ["eval", str(run_dir), "--data.eval-batch-size", "4"], num_devices=4)
    assert hung.exit_codes() == [Exit.HUNG], hung.output()
    assert "is in evaluate of step 12" in hung.output()
    assert "in evaluate_run" in hung.output(), "stacks are printed"
    assert {path: path.stat().st_mtime_ns for path in [run_dir, *run_dir.rglob("*")]} == before
    assert read_history(run_dir).starts[-1].exit == Exit.FINISHED
