"""After a rollback a run continues at the recorded batch, and ends as a run without the skipped batches."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import faults
import numpy as np
import pytest
from faults import DIGITS, rows_of, stop_after, with_policy
from launcher import Job

from gnp_scale import loop, steps
from gnp_scale.checkpoint import fingerprint
from gnp_scale.config import CheckpointConfig, ConfigError, DivergenceConfig, GnpConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.exit_codes import Exit
from gnp_scale.gnp import Gnp, StepKind
from gnp_scale.loop import train
from gnp_scale.resilience import rollback
from gnp_scale.resilience.rollback import ROLLBACKS_FILE, Rollbacks

pytestmark = pytest.mark.usefixtures("unoptimized")


def rollbacks_of(run_dir, *pairs, **settings):
    rollbacks = Rollbacks(run_dir, with_policy("rollback", max_rollbacks=9, **settings))
    for good, bad in pairs:
        rollbacks.add(good, bad)
    return rollbacks


# (good, bad) steps, first step to make, then the batches (from 0) of the steps up to 10.
STREAMS = {
    "none": ([], 0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    "one": ([(4, 6)], 4, [6, 7, 8, 9, 10, 11]),
    "one, from before": ([(4, 6)], 2, [2, 3, 6, 7, 8, 9, 10, 11]),
    "the same step again": ([(4, 6), (4, 7)], 4, [9, 10, 11, 12, 13, 14]),
    "a later one": ([(4, 6), (8, 9)], 4, [6, 7, 8, 9, 11, 12]),
    "further back": ([(4, 6), (2, 7)], 0, [0, 1, 9, 10, 11, 12, 13, 14, 15, 16]),
    "to the start": ([(0, 3)], 0, [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]),
    "nothing is left to make": ([(4, 6)], 10, []),
}


@pytest.mark.parametrize(("pairs", "start", "expected"), STREAMS.values(), ids=STREAMS.keys())
def test_batches_follow_from_the_step_and_the_records(pairs, start, expected, tmp_path):
    """No batch between a good and a bad step is read again, for any later restart."""
    rollbacks_of(tmp_path, *pairs)
    read = rollbacks_of(tmp_path).batches(lambda first, count: iter(range(first, first + count)), start, 10)
    assert list(read) == expected


def test_without_passing_over_them_the_same_batches_come_again(tmp_path):
    rollbacks = rollbacks_of(tmp_path, (4, 6), pass_bad_batches=False)
    assert list(rollbacks.batches(lambda first, count: iter(range(first, first + count)), 4, 8)) == [4, 5, 6, 7]


def test_the_penalty_is_off_for_a_while_after_a_rollback(tmp_path):
    full, plain = StepKind.FULL, StepKind.PLAIN
    planned = np.array([plain, full, full, full, full, full, full])
    rollbacks = rollbacks_of(tmp_path, (3, 4), plain_steps=3)
    np.testing.assert_array_equal(rollbacks.step_kinds(planned), [plain, full, full, plain, plain, plain, full])
    rollbacks.add(1, 5)
    np.testing.assert_array_equal(rollbacks.step_kinds(planned), [plain, plain, plain, plain, full, full, full])


P, F, R = StepKind.PLAIN, StepKind.FULL, StepKind.REUSE
# The plan, pairs of (good, bad) steps with the number of plain steps after each, and the result; k = 3.
REUSES = {
    "none": ("FRRFRRFRR", [], "FRRFRRFRR"),
    "to the start": ("FRRFRRFRR", [(0, 3, 1)], "PFRRFRRFR"),
    "to a reused direction": ("FRRFRRFRR", [(4, 6, 2)], "FRRFPPFRR"),
    "without plain steps": ("FRRFRRFRR", [(4, 6, 0)], "FRRFRRFRR"),
    "behind a gate": ("PPFPRPRPF", [(3, 6, 2)], "PPFPPPFPR"),
    "twice": ("FRRFRRFRR", [(0, 3, 1), (5, 7, 1)], "PFRRFPFRR"),
    "from where the count began again": ("FRRFRRFRR", [(0, 3, 1), (3, 7, 0)], "PFRRFRRFR"),
    "into the plain steps of before": ("FRRFRRFRR", [(1, 3, 5), (4, 7, 0)], "FPPPFRRFR"),
    "before those of before": ("FRRFRRFRR", [(4, 6, 3), (2, 5, 0)], "FRRFRRFRR"),
}


@pytest.mark.parametrize(("plan", "rollbacks", "expected"), REUSES.values(), ids=REUSES.keys())
@pytest.mark.parametrize("starts_again", [False, True], ids=["at once", "started again"])
def test_after_plain_steps_a_direction_is_made_before_it_is_reused(plan, rollbacks, expected, starts_again, tmp_path):
    """A direction kept from before a rollback is too old, and at the start of a run there is none."""

    def make(plain_steps=0):
        config = with_policy("rollback", max_rollbacks=9, plain_steps=plain_steps)
        return Rollbacks(tmp_path, replace(config, gnp=GnpConfig(direction="reused", reuse_every=3)))

    for good, bad, plain_steps in rollbacks:
        made = make(plain_steps)
        made.add(good, bad)
    made = make() if starts_again or not rollbacks else made
    kinds = {"P": P, "F": F, "R": R}
    got = made.step_kinds(np.array([kinds[letter] for letter in plan]))
    np.testing.assert_array_equal(got, [kinds[letter] for letter in expected])


def test_there_is_a_program_for_what_a_later_rollback_turns_on_again(tmp_path):
    """A run whose penalty is off until its end may roll back with other settings of `divergence`."""
    planned = Gnp(alpha=0.8).step_kinds(np.arange(DIGITS.train.num_steps))
    task = SimpleNamespace(config=DIGITS, planned_kinds=planned)
    rollbacks = rollbacks_of(tmp_path, (0, 3), plain_steps=10**6)
    assert set(loop._kinds(task, rollbacks)) == {StepKind.PLAIN, StepKind.FULL}


def stored(good_step, bad_step, num_passed_batches, plain_until):
    names = ("good_step", "bad_step", "num_passed_batches", "plain_until")
    return json.dumps([dict(zip(names, (good_step, bad_step, num_passed_batches, plain_until), strict=True))])


@pytest.mark.parametrize(
    "text",
    [
        *("[", '[{"good_step": 1}]', '{"good_step": 1}', "[" * 200_000),
        *(stored("2", 5, 0, 2), stored(2.5, 5, 0, 3), stored(True, 5, 0, 2), stored(2, 5, 10**400, 2)),
        *(stored(-2, 5, 0, 2), stored(2, 5, -3, 2), stored(5, 2, 0, 5), stored(2, 5, 0, 1)),
    ],
)
def test_a_damaged_file_of_rollbacks_is_named(text, tmp_path):
    (tmp_path / ROLLBACKS_FILE).write_text(text)
    with pytest.raises(ConfigError, match=f"{ROLLBACKS_FILE} is damaged"):
        rollbacks_of(tmp_path)


@pytest.mark.parametrize("is_main", [True, False])
def test_records_are_those_that_the_main_process_reads(monkeypatch, tmp_path, is_main):
    """Another host's file system may still show an older file, or none."""
    rollbacks_of(tmp_path, (4, 6))
    told = (tmp_path / ROLLBACKS_FILE).read_text()
    given = []
    monkeypatch.setattr(rollback, "is_main_process", lambda: is_main)
    monkeypatch.setattr(rollback, "broadcast", lambda text: given.append(text) or told)
    folder = tmp_path if is_main else tmp_path / "stale"
    read = rollbacks_of(folder).batches(lambda first, count: iter(range(first, first + count)), 4, 6)
    assert list(read) == [6, 7]
    assert given == [told if is_main else ""]


def test_a_record_is_on_the_disk_before_the_run_goes_back(monkeypatch, tmp_path):
    """File and folder: otherwise, after a power cut the run would read other batches than before."""
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    rollbacks_of(tmp_path, (4, 6))
    new, folder = synced
    assert new.startswith(str(tmp_path / ROLLBACKS_FILE))
    assert folder == str(tmp_path)


IMPOSSIBLE = {
    "nothing to go back to": ({"checkpoint": CheckpointConfig(every_steps=None)}, {}, "nothing to go back to"),
    "no penalty": ({"gnp": GnpConfig(alpha=0.0)}, {"plain_steps": 5}, "gnp.alpha is 0: there is no penalty"),
}


@pytest.mark.parametrize(("sections", "settings", "part"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_rollback_that_cannot_be_is_a_mistake_before_anything_is_written(sections, settings, part, tmp_path):
    config = replace(DIGITS, divergence=DivergenceConfig("rollback", **settings), **sections)
    with pytest.raises(ConfigError, match=part):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# Whole runs. Checkpoints are of steps 5, 10, 15 and 16.


@pytest.fixture
def prompt_saves(monkeypatch):
    """Writes every checkpoint before training continues, so that the test knows which are good at which step."""

    class PromptCheckpoints(loop.Checkpoints):
        def save(self, *arguments):
            super().save(*arguments)
            self._writer.finish()

    monkeypatch.setattr(loop, "Checkpoints", PromptCheckpoints)


@pytest.fixture
def deep_queue(monkeypatch):
    faults.deepen_queue(monkeypatch)


@pytest.mark.slow
@pytest.mark.usefixtures("prompt_saves", "deep_queue", "optimized")
def test_rollback_is_the_run_that_never_saw_the_bad_batches(tmp_path, monkeypatch, capsys):
    """From step 7 back to 5, skipping the batches of steps 6 and 7. The host detects it at the evaluation of step 8, or
    at a stop after step 7, and then stops at step 7 of the new attempt.
    """
    clean, whole, stopped = (tmp_path / name for name in ("clean", "whole", "stopped"))
    with monkeypatch.context() as patch:
        patch.setattr(steps, "train_batches", jumping_stream(after_step=5, num_batches=2))
        assert train(DIGITS, clean) == Exit.FINISHED
    faults.poison(monkeypatch.setattr, (7, 0))
    config = with_policy("rollback")
    with monkeypatch.context() as patch:
        batches = faults.count_batches(patch)
        assert train(config, whole) == Exit.FINISHED
    assert len(batches) == 8 + 11
    said = " ".join(capsys.readouterr().err.split())
    assert "step 7: train/loss is nan; rollback 1 of at most 3: back to step 5, past 2 batches" in said
    assert fingerprint(whole) == fingerprint(clean)
    assert rows_of(whole) == rows_of(clean)
    stop_after(monkeypatch, 7, lambda: train(config, stopped))
    assert train(config, stopped) == Exit.FINISHED
    assert fingerprint(stopped) == fingerprint(whole)
    assert rows_of(stopped) == rows_of(whole)


def jumping_stream(after_step, num_batches):
    def stream(dataset, config, seed, start, count):
        yield from train_batches(dataset, config, seed, start, after_step - start)
        yield from train_batches(dataset, config, seed, after_step + num_batches, count)

    return stream


@pytest.mark.slow
def test_a_rollback_may_turn_the_penalty_off_and_goes_to_the_start_if_nothing_is_good(tmp_path, monkeypatch):
    faults.poison(monkeypatch.setattr, (4, 0))
    assert train(with_policy("rollback", plain_steps=8), tmp_path) == Exit.FINISHED
    on = {step: row["gnp/on"] for step, row in rows_of(tmp_path).items() if "gnp/on" in row}
    assert on == {3: 0, 6: 0, 9: 1, 12: 1, 15: 1}


@pytest.mark.slow
def test_rollbacks_are_bounded_on_all_hosts_over_the_life_of_a_run(tmp_path):
    """NaN on one host, and later on the other: both roll back once, and both give up at the second."""
    run_dir = tmp_path / "run"
    recipe = f"{faults.__file__}:twice"
    command = ["train", recipe, "--run-dir", str(run_dir), "--divergence.policy", "rollback"]
    job = Job(tmp_path / "first", [*command, "--divergence.max-rollbacks", "1"], num_processes=2)
    assert job.exit_codes() == [77, 77], job.output()
    (record,) = json.loads((run_dir / ROLLBACKS_FILE).read_text())
    assert (record["good_step"], record["bad_step"], record["num_passed_batches"]) == (0, 4, 4)
    assert "step 7: train/loss is nan" in job.output()
