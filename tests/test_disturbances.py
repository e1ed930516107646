"""Any two disturbances of a run, at any time: it ends as an undisturbed run, or says why not."""

import itertools
import random
import time
from pathlib import Path

import pytest
from disturbed import ACTS, FAULTS, NAMES, NUM_STEPS, VARIABLE, Moment, reached
from faults import rows_of

from gnp_scale.chaos.local_processes import LocalJob
from gnp_scale.checkpoint import fingerprint
from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.rollback import ROLLBACKS_FILE
from gnp_scale.run.budgets import VARIABLE as BUDGETS

pytestmark = pytest.mark.usefixtures("unoptimized")

TESTS = str(Path(__file__).parent)
PAIRS = list(itertools.combinations(NAMES, 2))
NUM_DRAWN = 1
"""Of `make test-all`; the long suite has all of them, with one process and with two."""
SEED = 0
MOST_STARTS = 6


def start(folder, recipe, num_processes, faults=()):
    number = sum(1 for _ in folder.glob("logs-*"))
    return LocalJob(
        folder / f"logs-{number}",
        ["train", f"{TESTS}/disturbed.py:{recipe}", "--run-dir", str(folder / "run")],
        num_processes,
        num_devices=2,
        variables={VARIABLE: ",".join(faults), "PYTHONPATH": TESTS, BUDGETS: "silence=10,join=60"},
    )


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """The end of an undisturbed run with this number of processes, made once for each record of rollbacks.

    The target of a rollback depends on which checkpoint was good at that time. But a run that gets the record at its
    start reads the same batches from the first step on, and does not roll back again.
    """
    ends = {}

    def end_of(recipe, num_processes, rollbacks):
        if (recipe, num_processes, rollbacks) not in ends:
            folder = tmp_path_factory.mktemp("undisturbed")
            if rollbacks is not None:
                (folder / "run").mkdir()
                (folder / "run" / ROLLBACKS_FILE).write_text(rollbacks)
            job = start(folder, recipe, num_processes)
            assert set(job.exit_codes()) == {Exit.FINISHED}, job.output()
            assert "rollback" not in job.output().partition("step 1/")[2]
            ends[recipe, num_processes, rollbacks] = fingerprint(folder / "run"), rows_of(folder / "run")
        return ends[recipe, num_processes, rollbacks]

    return end_of


def disturb(folder, pair, num_processes, rng):
    """Disturbs a run with both at random times, and restarts it until it has finished; returns the exit codes."""
    recipe = "diverges" if "rollback" in pair else "steady"
    job = start(folder, recipe, num_processes, [name for name in pair if name in FAULTS])
    for name in rng.sample(pair, len(pair)):
        if name in ACTS:
            step, began_s = rng.randrange(NUM_STEPS), time.monotonic()
            while job.is_whole and not reached(folder / "run", step) and time.monotonic() - began_s < 60:
                time.sleep(0.02)
            time.sleep(rng.random() * 0.3)
            ACTS[name](Moment(job, folder / "run", rng, lambda: start(folder, recipe, num_processes)))
    codes = [job.exit_codes()]
    while set(codes[-1]) != {Exit.FINISHED}:
        assert len(codes) < MOST_STARTS, codes
        codes.append(start(folder, recipe, num_processes).exit_codes())
    return codes


def check(tmp_path, undisturbed, pair, num_processes, seed):
    codes = disturb(tmp_path, pair, num_processes, random.Random(f"{seed} {pair} {num_processes}"))
    logs = "\n".join(f"{path}\n{path.read_text()}" for path in sorted(tmp_path.glob("logs-*/*")))
    # Orbax drops coroutines that read a damaged checkpoint, and Python says so.
    assert "damaged checkpoint" in pair or "Traceback" not in logs, logs
    run_dir, recipe = tmp_path / "run", "diverges" if "rollback" in pair else "steady"
    record = run_dir / ROLLBACKS_FILE
    assert record.exists() == ("rollback" in pair)
    expected = undisturbed(recipe, num_processes, record.read_text() if record.exists() else None)
    assert (fingerprint(run_dir), rows_of(run_dir)) == expected, f"{codes}\n{logs}"


@pytest.mark.slow
@pytest.mark.parametrize("pair", random.Random(SEED).sample(PAIRS, NUM_DRAWN), ids=" and ".join)
def test_a_run_survives_two_disturbances(pair, tmp_path, undisturbed):
    check(tmp_path, undisturbed, pair, 1, SEED)


@pytest.mark.long
@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("pair", PAIRS, ids=" and ".join)
def test_a_run_survives_any_two_disturbances(pair, num_processes, tmp_path, undisturbed):
    check(tmp_path, undisturbed, pair, num_processes, SEED + 1)
