"""The queue of a sweep, with tiny commands in the place of the trainer."""

import errno
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from gnp_scale.config import ConfigError
from gnp_scale.run.files import try_lock
from gnp_scale.run.logs import telling_line
from gnp_scale.sweeps import queue as module
from gnp_scale.sweeps.queue import Queue, is_in_use, meaning


def shell(folder, script):
    return ["sh", "-c", f"cd {folder}; {script}"]


def queue(folder, num_jobs=1, is_finished=lambda name: False, **scripts):
    commands = {name: shell(folder, script) for name, script in scripts.items()}
    return Queue(folder, commands, is_finished, num_jobs)


def alive(ours):
    return [process.pid for process, _ in ours._running.values() if process.poll() is None]


def test_a_failure_does_not_end_the_queue_and_a_stop_is_started_again(tmp_path):
    ours = queue(
        tmp_path,
        wrong="echo no such flag; exit 2",
        diverged="exit 77",
        stopped="echo x >>stopped; [ $(wc -l <stopped) = 3 ] || exit 75",
        killed="[ -e killed ] || { touch killed; kill -KILL $$; }",
        hung="echo x >>hung; exit 76",
        good="exit 0",
    )
    assert ours.run()
    assert ours.codes == {"wrong": 2, "diverged": 77, "stopped": 0, "killed": 0, "hung": 76, "good": 0}
    assert len((tmp_path / "hung").read_text().split()) == 4, "it must not be started for ever"
    assert ours.error_of("wrong") == "no such flag"
    assert ours.error_of("good") == "its log is empty"


PLUGIN = "Traceback (most recent call last):\nRuntimeError: Unable to load cuFFT. Is it installed?\n"
STEPS = "step 10/60  loss 2.3\nstep 20/60  loss 2.2  images/s 300\n"
TABLE = "step 60/60  test accuracy 0.9\n  finished\nwatch it: tensorboard --logdir runs/a\n"
LOGS = {
    "a mistake": (f"{PLUGIN}gnp-scale: --x is wrong: leave it out\n", "--x is wrong: leave it out"),
    "a failure, after which other runs go on": (
        f"{PLUGIN}{STEPS}gnp-scale: sam, tune: failed: OSError: disk full\n{STEPS}{TABLE}gnp-scale: process 1 waits\n",
        "sam, tune: failed: OSError: disk full",
    ),
    "a traceback": (
        f"{STEPS}Traceback (most recent call last):\n  File x\njax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: memory\n"
        "of 3 GB\n--------\nE0000 tsl\n",
        "jax.errors.JaxRuntimeError: RESOURCE_EXHAUSTED: memory",
    ),
    "a divergence": (f"{STEPS}diverged: step 21: nan\nthere is no checkpoint\n", "diverged: step 21: nan"),
    "a crash": (
        f"{STEPS}Fatal Python error: Segmentation fault\n\nThread 1:\n",
        "Fatal Python error: Segmentation fault",
    ),
    "a kill, after an error that ended nothing": (f"{PLUGIN}{STEPS}", "step 20/60  loss 2.2  images/s 300"),
    "nothing": (" \n\n", "its log is empty"),
}


@pytest.mark.parametrize(("text", "line"), LOGS.values(), ids=LOGS)
def test_the_line_that_tells_the_error_is_found_in_a_log(text, line):
    assert telling_line(text) == line


def test_an_error_of_an_earlier_start_is_not_told_again(tmp_path):
    script = (
        "[ -e again ] && { echo 'step 1/9 '; kill -KILL $$; }; touch again; echo 'gnp-scale: a: failed: x'; exit 75"
    )
    ours = queue(tmp_path, a=script)
    assert ours.run()
    assert (ours.codes, ours.error_of("a")) == ({"a": -9}, "step 1/9")


@pytest.mark.parametrize("num_jobs", [1, 2])
def test_no_more_processes_run_at_a_time_than_asked_for(tmp_path, num_jobs):
    script = "echo 1 >>live; sleep 0.5; echo -1 >>live"
    ours = queue(tmp_path, num_jobs, a=script, b=script, c=script)
    assert ours.run()
    live = [int(line) for line in (tmp_path / "live").read_text().split()]
    assert max(sum(live[: end + 1]) for end in range(len(live))) == num_jobs


def test_what_is_no_run_folder_is_in_nobodys_hands(tmp_path):
    (tmp_path / "a" / "lock").mkdir(parents=True)
    (tmp_path / "b").touch()
    assert not any(is_in_use(tmp_path / name) for name in "abc")


def test_a_finished_point_is_not_started(tmp_path):
    ours = queue(tmp_path, is_finished=lambda name: name == "old", old="touch ran", new="exit 0")
    assert ours.run()
    assert ours.codes == {"old": 0, "new": 0}
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_the_processes_which_are_waited_for(tmp_path, number):
    """Those that wait are not started, and the handlers of this process are as before."""
    before = signal.getsignal(number)
    saves = "trap 'sleep 0.5; touch saved-$$; exit 75' TERM INT USR1; touch ready-$$; while :; do sleep 0.05; done"
    ours = queue(tmp_path, 2, a=saves, b=saves, c="touch ran")

    def stop():
        while len(list(tmp_path.glob("ready-*"))) < 2:
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=stop)
    thread.start()
    assert not ours.run()
    thread.join()
    assert ours.codes == {"a": 75, "b": 75}
    assert len(list(tmp_path.glob("saved-*"))) == 2
    assert not (tmp_path / "ran").exists()
    assert signal.getsignal(number) == before


def trained_elsewhere(lock: Path, seconds: int) -> subprocess.Popen:
    """Another process, which holds the lock of a point for so long."""
    lock.parent.mkdir()
    with lock.open("w") as file:
        assert try_lock(file.fileno())
        return subprocess.Popen(["sleep", str(seconds)], stdout=file)


@pytest.mark.parametrize("held", ["logs/a.log", "a/lock"])
def test_a_point_in_the_hands_of_another_process_is_left_to_it(tmp_path, held):
    """Its process may have outlived another queue (the lock of the log), or be started by hand (that of the run)."""
    other = trained_elsewhere(tmp_path / held, 1)
    ours = queue(tmp_path, is_finished=lambda name: name == "a" and other.poll() == 0, a="touch ran", b="sleep 0.1")
    assert ours.run()
    assert ours.codes == {"a": 0, "b": 0}
    assert list(ours.codes) == ["b", "a"], "the other point is trained meanwhile"
    assert not (tmp_path / "ran").exists()


def test_a_stop_names_the_points_that_others_go_on_training(tmp_path, capsys):
    other = trained_elsewhere(tmp_path / "logs" / "a.log", 60)
    threading.Timer(0.7, os.kill, (os.getpid(), signal.SIGTERM)).start()
    assert not queue(tmp_path, a="touch ran", b="exit 0").run()
    assert other.poll() is None
    other.kill()
    other.wait()
    lines = capsys.readouterr().err.splitlines()
    assert lines.count("gnp-scale: a: another process is training it, and is waited for") == 1
    assert lines[-1] == "gnp-scale: other processes go on training a"


def test_a_point_whose_other_process_was_killed_is_taken_over(tmp_path):
    other = trained_elsewhere(tmp_path / "logs" / "a.log", 60)
    threading.Timer(0.5, other.kill).start()
    ours = queue(tmp_path, a="touch ran")
    assert ours.run()
    assert other.wait() == -signal.SIGKILL
    assert (tmp_path / "ran").exists()


def test_a_run_that_somebody_else_has_just_started_is_not_a_failure(tmp_path):
    """The trainer exits with 2 if its folder is in use."""
    (tmp_path / "a").mkdir()
    script = "touch second; flock a/lock sleep 0.7 & while ! [ -s a/lock ] && flock -n a/lock true; do :; done; exit 2"
    ours = queue(tmp_path, a=f"[ -e second ] || {{ {script}; }}")
    assert ours.run()
    assert ours.codes == {"a": 0}


def test_an_error_leaves_no_process_behind(tmp_path):
    """It is stopped as by a signal, so it may save."""

    def is_finished(name):
        if name == "second":
            raise ConfigError("its folder is damaged")
        return False

    first = "trap 'echo saved >>out; exit 75' TERM; echo begun >>out; while :; do sleep 0.05; done"
    ours = queue(tmp_path, 2, is_finished, first=first, second="exit 0")
    with pytest.raises(ConfigError, match="its folder is damaged"):
        ours.run()
    assert not alive(ours)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"cannot be written .*: make it writable, or choose another folder$"):
        queue(tmp_path / "file", a="exit 0").run()


def test_a_lock_of_somebody_else_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a/lock")

    monkeypatch.setattr(module.os, "open", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written .*denied: 'a/lock'.*: make it writable"):
        queue(tmp_path, a="exit 0").run()


def test_exit_codes_have_words():
    assert meaning(0) == "finished"
    assert meaning(77) == "diverged, exit code 77"
    assert meaning(-signal.SIGRTMIN) == f"killed by {signal.SIGRTMIN.name}"
    assert meaning(-40) == "killed by signal 40"
    assert meaning(5) == "failed, exit code 5"
    assert meaning(-9) == "killed by SIGKILL"


def test_somebody_may_watch_while_processes_run(tmp_path):
    num_polls = []
    commands = {"a": shell(tmp_path, "sleep 0.7")}
    assert Queue(tmp_path, commands, lambda name: False, 1, lambda: num_polls.append(len(num_polls))).run()
    assert len(num_polls) >= 2
