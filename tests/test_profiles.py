"""Profiles of some steps: they have these steps and no others, no disturbance loses the run, and no bit changes."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import faults
import jax
import jax.numpy as jnp
import pytest
from faults import DIGITS, rows_of, stop_after, with_policy
from launcher import SHORT, run
from store_proxy import refuse

from gnp_scale.checkpoint import fingerprint
from gnp_scale.config import Config, ConfigError, TrainConfig
from gnp_scale.exit_codes import Exit
from gnp_scale.loop import train
from gnp_scale.monitoring import profiles
from gnp_scale.monitoring.profiles import STEP_NAME, Profile
from gnp_scale.run.layout import PROFILES_FOLDER
from gnp_scale.run.run_dir import changes

pytestmark = pytest.mark.usefixtures("unoptimized")

WRONG_RANGES = {
    "no range": ("10", "write it as START:STOP"),
    "three numbers": ("1:10:2", "write it as START:STOP"),
    "no start": (":10", "write it as START:STOP"),
    "negative": ("-5:10", "write it as START:STOP"),
    "empty": ("10:10", "write it as START:STOP"),
    "backwards": ("15:10", "write it as START:STOP"),
    "the first step": ("1:3", "START must be at least 2"),
    "beyond the end": ("90:102", "STOP at most 101"),
}


@pytest.mark.parametrize(("text", "part"), WRONG_RANGES.values(), ids=WRONG_RANGES)
def test_a_wrong_range_is_one_line_that_names_a_right_one(text, part):
    with pytest.raises(ConfigError, match=part) as error:
        TrainConfig(num_steps=100, profile_steps=text)
    assert f"train.profile_steps is '{text}'" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_range_is_like_a_slice_and_may_hold_the_last_step():
    assert TrainConfig(num_steps=100, profile_steps="2:101").profiled == range(2, 101)
    assert not TrainConfig().profiled


def test_another_start_of_a_run_may_record_other_steps():
    assert changes(Config(), Config(train=TrainConfig(profile_steps="10:15"))) == []


def recorded(folder: Path) -> list[list[int]]:
    """The steps of each recording, in the order of their folders; of all its processes, which have the same."""
    found = []
    for session in sorted((folder / PROFILES_FOLDER).iterdir()):
        traces = [json.loads(gzip.decompress(file.read_bytes())) for file in session.glob("*.trace.json.gz")]
        (steps,) = {tuple(steps_of(trace)) for trace in traces}
        found.append(list(steps))
    return found


def steps_of(trace) -> list[int]:
    return sorted(int(event["args"]["step_num"]) for event in trace["traceEvents"] if event.get("name") == STEP_NAME)


def walk(profile, start, stop):
    """The steps of a loop, which each compute something."""
    compute = jax.jit(lambda x: (x @ x).sum())
    profile.begin(start)
    for step in range(start + 1, stop):
        if profile.turns_before(step):
            profile.turn()
        with profile.step(step):
            compute(jnp.ones((8, 8))).block_until_ready()


@pytest.fixture(autouse=True)
def temporary(tmp_path_factory, monkeypatch):
    """The temporary folder, in which nothing stays."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(profiles.tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def numbered(monkeypatch):
    """Names of recordings in the order in which they began, however short they are."""
    numbers = iter(range(10, 100))
    monkeypatch.setattr(profiles.time, "strftime", lambda form: str(next(numbers)))


PARTS = {
    "from the start": (0, 12, [[4, 5, 6]]),
    "the last steps of a run": (0, 6, [[4, 5]]),
    "a start in the middle, without its first step": (4, 12, [[6]]),
    "a start whose first step is the first": (3, 12, [[5, 6]]),
}


@pytest.mark.parametrize(("start", "stop", "expected"), PARTS.values(), ids=PARTS)
def test_a_profile_has_the_steps_of_the_range_that_a_start_makes(start, stop, expected, tmp_path, capsys):
    with Profile(TrainConfig(profile_steps="4:7"), tmp_path) as profile:
        walk(profile, start, stop)
    assert recorded(tmp_path) == expected
    ((first, *_, last),) = [[*steps, steps[-1]] for steps in expected]
    assert f"profile of steps {first} to {last}: xprof --logdir {tmp_path}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("start", [5, 6, 1000])
def test_a_range_that_was_passed_records_nothing_and_says_so(start, tmp_path, capsys):
    with Profile(TrainConfig(profile_steps="4:7"), tmp_path) as profile:
        walk(profile, start, start + 4)
    assert not (tmp_path / "plugins").exists()
    assert f"no profile of steps 4 to 6: this start goes on after step {start}" in capsys.readouterr().err


def test_without_a_range_nothing_is_said_or_recorded(tmp_path, capsys):
    with Profile(TrainConfig(), tmp_path) as profile:
        walk(profile, 0, 5)
    assert capsys.readouterr().err == ""
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("numbered")
def test_what_a_rollback_repeats_is_recorded_again(tmp_path, capsys):
    """In a folder of its own: programs that show profiles keep there what they have computed."""
    with Profile(TrainConfig(profile_steps="4:7"), tmp_path) as profile:
        walk(profile, 0, 6)
        walk(profile, 2, 9)
        walk(profile, 8, 12)
    assert recorded(tmp_path) == [[4, 5], [4, 5, 6]]
    assert "no profile" not in capsys.readouterr().err


@pytest.mark.parametrize("fails", ["start_trace", "stop_trace"])
def test_a_profiler_that_fails_costs_one_line(fails, tmp_path, monkeypatch, capsys):
    def fail(*arguments, **options):
        raise jax.errors.JaxRuntimeError("UNKNOWN: no events\nmore")

    with monkeypatch.context() as patch:
        patch.setattr(jax.profiler, fails, fail)
        with Profile(TrainConfig(profile_steps="4:7"), tmp_path) as profile:
            walk(profile, 0, 9)
    if fails == "stop_trace":
        jax.profiler.stop_trace()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "gnp-scale: no profile of steps 4 to 6 (UNKNOWN: no events more): training goes on"


def test_a_folder_that_takes_no_profile_costs_one_line(tmp_path, capsys):
    (tmp_path / "plugins").write_text("")
    with Profile(TrainConfig(profile_steps="4:7"), tmp_path) as profile:
        walk(profile, 0, 9)
    (line,) = capsys.readouterr().err.splitlines()
    assert "no profile of steps 4 to 6 ([Errno 20] Not a directory" in line


def test_a_store_gets_the_profile_and_its_failure_ends_nothing(store, temporary, capsys):
    folder = store.folder()
    with Profile(TrainConfig(profile_steps="2:4"), folder) as profile:
        walk(profile, 0, 5)
    (session,) = (folder / PROFILES_FOLDER).names()
    names = (folder / PROFILES_FOLDER / session.rstrip("/")).names()
    assert [name.partition(".")[2] for name in names] == ["trace.json.gz", "xplane.pb"]
    data = (folder / PROFILES_FOLDER / session.rstrip("/") / names[0]).read_bytes()
    assert steps_of(json.loads(gzip.decompress(data))) == [2, 3]
    store.proxy.disturb(refuse(403), 1000)
    with Profile(TrainConfig(profile_steps="2:4"), folder) as profile:
        walk(profile, 0, 5)
    assert "no profile of steps 2 to 3 (" in capsys.readouterr().err
    assert not list(temporary.iterdir()), "nothing stays on the machine"


# Whole runs. Checkpoints are of steps 5, 10, 15 and 16.


def profiled(config, text):
    return replace(config, train=replace(config.train, profile_steps=text))


@pytest.mark.slow
@pytest.mark.usefixtures("numbered")
def test_a_run_that_is_stopped_while_it_records_saves_first_and_ends_bitwise_as_one_without(
    tmp_path, monkeypatch, capsys
):
    """It goes on with another range; the first step of that start is not in it."""
    plain, run_dir = tmp_path / "plain", tmp_path / "run"
    assert train(DIGITS, plain) == Exit.FINISHED
    with monkeypatch.context() as patch:
        saved_before = []
        stop = Profile._stop
        patch.setattr(
            Profile, "_stop", lambda self: (saved_before.append((run_dir / "checkpoints/6").exists()), stop(self))
        )
        stop_after(patch, 6, lambda: train(profiled(DIGITS, "4:9"), run_dir))
    assert saved_before[-1]
    assert train(profiled(DIGITS, "7:10"), run_dir) == Exit.FINISHED
    assert recorded(run_dir) == [[4, 5, 6], [8, 9]]
    assert fingerprint(run_dir) == fingerprint(plain)
    assert rows_of(run_dir) == rows_of(plain)
    assert "profile of steps 4 to 6: xprof" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("numbered")
def test_a_rollback_while_a_run_records(tmp_path, monkeypatch):
    """From step 7 back to 5, or to the start if that is not written yet."""
    faults.poison(monkeypatch.setattr, (7, 0))
    assert train(profiled(with_policy("rollback"), "6:10"), tmp_path) == Exit.FINISHED
    first, second = recorded(tmp_path)
    assert first[:2] == [6, 7]
    assert second in ([7, 8, 9], [6, 7, 8, 9])


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:builtin type event_stats:DeprecationWarning")
def test_each_process_of_a_run_writes_its_own(tmp_path):
    flags = ["--train.profile-steps", "3:6", "--run-dir", str(tmp_path / "run")]
    run(tmp_path, "train", *SHORT, *flags, num_processes=2, num_devices=4)
    (session,) = (tmp_path / "run" / PROFILES_FOLDER).iterdir()
    assert recorded(tmp_path / "run") == [[3, 4, 5]]
    files = sorted(session.glob("*.xplane.pb"))
    assert [file.name.rpartition("_")[2] for file in files] == ["0.xplane.pb", "1.xplane.pb"]
    assert len(list(session.iterdir())) == 4
    for file in files:
        lines = [line for plane in jax.profiler.ProfileData.from_file(str(file)).planes for line in plane.lines]
        steps = [event for line in lines for event in line.events if event.name == STEP_NAME]
        assert [dict(step.stats)["step_num"] for step in steps] == [3, 4, 5]
