"""The protocol of `gnp-scale bench generalization`, with a trainer that only writes outcomes."""

import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gnp_scale import recipe
from gnp_scale.cli import main
from gnp_scale.commands.bench import _TABLES
from gnp_scale.config import ConfigError, OptimConfig
from gnp_scale.evidence import outcome
from gnp_scale.evidence.claim import claimed
from gnp_scale.evidence.methods import METHODS, RADII, Method
from gnp_scale.evidence.outcome import Outcome
from gnp_scale.evidence.plan import Plan, Run, config_of, folder_of, num_passes
from gnp_scale.evidence.row import Row, best_point, mean_validation
from gnp_scale.evidence.run import Progress, forget, rows_of
from gnp_scale.evidence.summary import bootstrap
from gnp_scale.evidence.tables import NUM_EVALUATIONS, TABLES
from gnp_scale.evidence.trial import best_with_checkpoint
from gnp_scale.exit_codes import Exit
from gnp_scale.run.files import try_lock
from gnp_scale.run.layout import CONFIG_FILE
from gnp_scale.run.recorder import Recorder
from gnp_scale.run.stages import Stages
from gnp_scale.sweeps.queue import open_log

PLAN = Plan(TABLES["noise40"], num_seeds=3, num_tuning_seeds=2, num_steps=60)
RATE, DECAY = 0.05, 1e-4
"""The learning rate and weight decay of the table."""
BEST = (("gnp.r", 0.1), ("optim.learning_rate", RATE))
BEST_PLAIN = (("optim.learning_rate", RATE), ("optim.l2_in_loss", DECAY))


def accuracy(run: Run) -> float:
    """On validation: each seed shifts all points; the best are the table's rate and decay, and r = 0.1."""
    best = {"optim.learning_rate": RATE, "optim.l2_in_loss": DECAY, "gnp.r": 0.1 * METHODS[run.method].radius_factor}
    distance = sum(abs(np.log(value / best[option])) for option, value in run.point)
    return 0.5 - distance / 20 + (run.seed % 7) / 100


class Fake:
    """Trains nothing: keeps what it was asked for, and writes outcomes."""

    def __init__(self, fails=lambda run: False, error=OSError, stops_at=None, test=lambda run: 0.5):
        self.asked, self._fails, self._error, self._stops_at, self._test = [], fails, error, stops_at, test

    def __call__(self, run, config, run_dir):
        self.asked.append(run)
        if len(self.asked) == self._stops_at:
            return None
        if self._fails(run):
            raise self._error("the disk is full\nand more")
        assert run_dir.name.startswith("final," if run.is_final else "tune,")
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.json").write_text(recipe.to_json(config))
        validation = {"30": accuracy(run) - 0.1, "60": accuracy(run)}
        test = {"test_best": self._test(run), "test_final": self._test(run) - 0.1} if run.is_final else {}
        result = Outcome(num_passes(config), 1e12, 30.0, validation, 0.9, **test)
        outcome.write(run_dir, result)
        return result


@pytest.fixture(scope="module")
def configs():
    return PLAN.configs()


@pytest.fixture
def rows(configs, tmp_path):
    return {name: Row(PLAN, name, config, tmp_path) for name, config in configs.items()}


ALIKE = ("noise60", "clean")
"""Tables that differ from `noise40` in their noise alone."""


@pytest.mark.parametrize("name", ALIKE)
def test_tables_of_other_noise_differ_in_nothing_else(name):
    table, noise40 = TABLES[name], TABLES["noise40"]
    assert (table.methods, table.num_steps) == (noise40.methods, noise40.num_steps)
    config, other = table.config(60), noise40.config(60)
    assert config != other
    assert replace(config, data=replace(config.data, label_noise=0.4)) == other


@pytest.mark.parametrize("name", sorted(TABLES.keys() - ALIKE))
def test_every_method_of_a_table_is_a_run_that_can_be_made(name):
    table = TABLES[name]
    plan = Plan(table, 5, 2, table.num_steps)
    configs = plan.configs()
    costs = {method: num_passes(config) / table.num_steps for method, config in configs.items()}
    assert {method: costs[method] for method in ("plain", "plain-2x")} == {"plain": 1, "plain-2x": 2}
    expected = {
        "every-2": 1.5,
        "momentum": 1,
        "reused": 1.2,
        "reused-0.3": 1.2,
        "stale": 1,
        "late-50": 1.5,
        "late-20": 1.2,
    }
    expected |= {"sam-gated": 1.9, "gnp-0.8-gated": 1.9}
    exact = {method: cost for method, cost in costs.items() if method not in ("plain", "plain-2x", "bernoulli-0.5")}
    assert exact == {method: expected.get(method, 2) for method in exact}
    assert costs.get("bernoulli-0.5", 1.5) == pytest.approx(1.5, abs=0.05)
    for method, config in configs.items():
        steps = range(1, config.train.num_steps + 1)
        assert sum(map(config.train.evaluates_after, steps)) == NUM_EVALUATIONS, "equal choices of a checkpoint"
        num_draws = 1 if name in ("photographs", "photographs-squares") else 2
        assert len({config_of(run, config).data.draw_seed for run in plan.tuning(method)}) == num_draws


def test_the_command_offers_the_tables():
    assert tuple(TABLES) == _TABLES


def test_all_methods_have_equal_budgets_and_no_seed_both_tunes_and_reports(rows):
    budgets = {(len(set(PLAN.tuning(name))), len(PLAN.final(name, BEST))) for name in rows}
    assert budgets == {(24, 3)}
    tuning = {run.seed for name in rows for run in PLAN.tuning(name)}
    assert not tuning & {run.seed for run in PLAN.final("sam", BEST)}
    config = rows["sam"].config
    drawn = [config_of(run, config) for run in (*PLAN.tuning("sam"), *PLAN.final("sam", BEST))]
    assert all(each.data.draw_seed == each.train.seed for each in drawn)
    assert {each.gnp.r for each in drawn} == set(RADII)


ASAM = (("gnp.r", 1.0), ("optim.learning_rate", RATE))


@pytest.mark.parametrize(
    ("name", "point"), [("plain", BEST_PLAIN), ("plain-2x", BEST_PLAIN), ("sam", BEST), ("asam", ASAM)]
)
def test_a_row_tunes_chooses_and_trains_on_fresh_seeds(rows, name, point):
    train = Fake()
    assert rows[name].run(train) == Exit.FINISHED
    assert train.asked == [*PLAN.tuning(name), *PLAN.final(name, point)]
    assert rows[name].is_finished()
    again = Fake()
    assert rows[name].run(again) == Exit.FINISHED
    assert not again.asked, "finished runs are not made again"


@given(st.data())
def test_the_choice_does_not_look_at_test_scores(data):
    share = st.floats(0, 1)
    without = {run: Outcome(120.0, validation={"60": data.draw(share)}) for run in PLAN.tuning("sam")}
    drawn = {
        run: replace(result, test_best=data.draw(share), test_final=data.draw(share)) for run, result in without.items()
    }
    assert best_point(drawn) == best_point(without)


LOW, HIGH = ((("gnp.r", value),) for value in (0.1, 0.2))


def test_the_choice_is_by_the_mean_of_the_best_evaluations():
    def results(accuracies):
        validations = [{"30": best, "60": last} for best, last in accuracies]
        places = itertools.product((LOW, HIGH), (0, 1))
        return {
            Run("sam", False, point, seed): Outcome(1.0, validation=validation)
            for (point, seed), validation in zip(places, validations, strict=True)
        }

    found = results([(0.5, 0.1), (0.7, 0.1), (0.2, 0.55), (0.3, 0.55)])
    assert mean_validation(found) == {LOW: pytest.approx(0.6), HIGH: pytest.approx(0.55)}
    assert best_point(found) == LOW
    assert best_point(results([(0.5, 0.5)] * 4)) == LOW, "of equal ones the smallest"


def test_a_run_that_diverged_counts_as_nothing_right():
    runs = [Run("sam", False, point, seed) for point in (LOW, HIGH) for seed in (0, 1)]
    diverged, good = Outcome(1.0), Outcome(1.0, validation={"60": 0.4})
    results = dict(zip(runs, (diverged, Outcome(1.0, validation={"60": 0.7}), good, good), strict=True))
    assert best_point(results) == HIGH
    assert best_point(dict.fromkeys(runs, diverged)) is None


def test_a_row_whose_values_all_diverge_ends_without_final_runs(rows):
    def train(run, config, run_dir):
        Fake()(run, config, run_dir)
        result = Outcome(num_passes(config))
        outcome.write(run_dir, result)
        return result

    assert rows["sam"].run(train) == Exit.FINISHED
    assert (rows["sam"].is_finished(), rows["sam"].chosen(), rows["sam"].final()) == (True, None, [])


def test_the_best_evaluation_that_has_a_checkpoint_is_tested(tmp_path):
    """Which of equal ones has a checkpoint depends on when else the run saves."""
    validation = {"20": 0.5, "60": 0.4, "100": 0.5, "140": 0.3}
    assert Outcome(1.0, validation=validation).best == 0.5
    assert best_with_checkpoint(tmp_path, validation, [20, 140]) == 20
    assert best_with_checkpoint(tmp_path, validation, [20, 100, 140]) == 100
    assert best_with_checkpoint(tmp_path, validation, [60, 140]) == 60, "the others could not be saved"
    with pytest.raises(ConfigError, match="has no checkpoint of an evaluation"):
        best_with_checkpoint(tmp_path, validation, [30])


@pytest.mark.parametrize("stops_at", [1, 5, 24, 25, 26])
def test_a_stopped_row_goes_on_where_it_stopped(rows, stops_at):
    first, second = Fake(stops_at=stops_at), Fake()
    assert rows["sam"].run(first) == Exit.PREEMPTED
    assert not rows["sam"].is_finished()
    assert rows["sam"].run(second) == Exit.FINISHED
    made = [*first.asked[:-1], *second.asked]
    assert made == [*PLAN.tuning("sam"), *PLAN.final("sam", BEST)]


@pytest.mark.parametrize(("error", "code"), [(OSError, Exit.FAILED), (ConfigError, Exit.WRONG_CONFIG)])
def test_a_failure_is_named_and_ends_no_other_run_and_is_tried_again(error, code, rows, capsys):
    bad = PLAN.tuning("sam")[3]
    train = Fake(fails=lambda run: run == bad, error=error)
    assert rows["sam"].run(train) == code
    assert train.asked == PLAN.tuning("sam")
    assert rows["sam"].chosen() is None, "nothing is chosen before all values had equal chances"
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    assert line == f"gnp-scale: sam, {bad.name}: failed: {error.__name__}: the disk is full and more"
    again = Fake()
    assert rows["sam"].run(again) == Exit.FINISHED
    assert again.asked == [bad, *PLAN.final("sam", BEST)]


def test_a_failure_and_a_stop_and_a_restart_of_another_row_together(rows):
    """The row that is restarted loses its runs, and the disturbed one keeps those that it has made."""
    bad = PLAN.tuning("sam")[2]
    assert rows["plain"].run(Fake()) == Exit.FINISHED
    disturbed = Fake(fails=lambda run: run == bad, stops_at=9)
    assert rows["sam"].run(disturbed) == Exit.PREEMPTED
    forget([rows["plain"]])
    rest, again = Fake(), Fake()
    assert rows["sam"].run(rest) == Exit.FINISHED
    assert rest.asked == [bad, *PLAN.tuning("sam")[8:], *PLAN.final("sam", BEST)]
    assert rows["plain"].run(again) == Exit.FINISHED
    assert len(again.asked) == 27


@pytest.mark.parametrize("code", [None, Exit.HUNG, Exit.PREEMPTED])
def test_a_run_in_which_the_process_died_comes_last_and_one_that_was_stopped_goes_on(rows, code):
    first, *others = PLAN.tuning("sam")
    folder = folder_of(rows["sam"].folder, first)
    folder.mkdir(parents=True)
    with Recorder(folder, Stages(), is_writer=True) as recorder:
        if code is not None:
            recorder.end(code)
    train = Fake()
    assert rows["sam"].run(train) == Exit.FINISHED
    assert train.asked[:24] == ([first, *others] if code == Exit.PREEMPTED else [*others, first])


def test_more_seeds_of_both_kinds_add_runs(rows):
    assert rows["sam"].run(Fake()) == Exit.FINISHED
    more = replace(rows["sam"], plan=replace(PLAN, num_tuning_seeds=3, num_seeds=4))
    assert not more.is_finished()
    train = Fake()
    assert more.run(train) == Exit.FINISHED
    assert len(train.asked) == 12 + 1


@pytest.mark.parametrize("finished", [True, False])
def test_runs_of_other_settings_are_refused(finished, rows, tmp_path):
    """Also those that were stopped: their row could never be completed."""
    assert rows["sam"].run(Fake()) == Exit.FINISHED
    for path in () if finished else tmp_path.rglob(outcome.OUTCOME_FILE):
        path.unlink()
    longer = rows_of(replace(PLAN, num_steps=90), tmp_path)["sam"]
    with pytest.raises(
        ConfigError,
        match=r"train\.num_steps 60 -> 90.*give the --steps of that benchmark, or another --out; or remove its "
        r"method's runs with --again --only sam$",
    ):
        longer.is_finished()


def test_a_row_is_forgotten_alone(rows):
    for name in ("plain", "sam"):
        assert rows[name].run(Fake()) == Exit.FINISHED
    forget([rows["sam"]])
    assert (rows["plain"].is_finished(), rows["sam"].is_finished()) == (True, False)


@pytest.mark.parametrize("lock", ["logs/sam.log", "sam/RUN/lock"])
def test_nothing_is_forgotten_while_a_row_or_one_of_its_runs_is_trained(lock, rows, tmp_path):
    """A row that is started by hand, and a run that `gnp-scale train` goes on with."""
    for name in ("plain", "sam"):
        assert rows[name].run(Fake()) == Exit.FINISHED
    path = tmp_path / lock.replace("RUN", PLAN.tuning("sam")[3].name)
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        assert try_lock(file.fileno())
        with pytest.raises(ConfigError, match="sam is being trained by another process: wait for its end, or stop it"):
            forget([rows["plain"], rows["sam"]])
    assert (rows["plain"].is_finished(), rows["sam"].is_finished()) == (True, True)
    forget([rows["plain"], rows["sam"]])
    assert not (tmp_path / "plain").exists()
    assert not (tmp_path / "sam").exists()


def test_a_row_is_trained_once_and_by_the_process_of_a_queue_too(rows, tmp_path):
    """Such a process has the locked log as its output."""
    claim = f"""
from pathlib import Path
from gnp_scale.evidence.claim import claimed
from gnp_scale.evidence.row import Row
with claimed(Row(None, "sam", None, Path({str(tmp_path)!r})), wait_s=0):
    print("claimed")
"""
    command = [sys.executable, "-c", claim]
    with claimed(rows["sam"]):
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "sam is being trained by another process" in other.stderr
    with open_log(tmp_path, "sam") as log:
        assert try_lock(log.fileno())
        other = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "sam is being trained by another process" in other.stderr
        subprocess.run(command, stdout=log, check=True)
        assert "claimed" in (tmp_path / "logs" / "sam.log").read_text()
    assert "claimed" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_nothing_is_forgotten_if_the_command_is_refused(tmp_path, capsys):
    command = ["bench", "generalization", "photographs", "--out", str(tmp_path / "out"), "--only", "sam"]
    run = tmp_path / "out" / "sam" / "tune"
    run.mkdir(parents=True)
    assert main([*command, "--again", "--data.root", str(tmp_path)]) == Exit.WRONG_CONFIG
    assert run.exists()
    assert "there is no data set grocery_store" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--report", "--only", "nonsense"], "there is no method nonsense"),
        (["--report"], "there are no runs in"),
        (["--steps", "30", "--only", "plain"], "cannot be written"),
    ],
)
def test_a_folder_or_a_method_that_is_not_there_is_one_line(options, words, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["bench", "generalization", "clean", "--out", str(tmp_path / "file" / "x"), *options]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_without_a_run_has_no_report(tmp_path, capsys):
    (tmp_path / "foreign.txt").touch()
    assert main(["bench", "generalization", "clean", "--out", str(tmp_path), "--report"]) == Exit.WRONG_CONFIG
    assert "there are no runs in" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["foreign.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("way", [["--row", "sam"], ["--check", "sam"], ["--again", "--only", "sam"]])
@pytest.mark.parametrize(
    ("table", "flags", "words"),
    [
        ("clean", ["--mesh.fsdp", "7"], "fsdp 7 x tensor 1 does not fit 2 devices"),
        ("photographs", ["--data.root", "nowhere"], "there is no data set grocery_store"),
    ],
)
def test_what_would_end_each_run_ends_the_command_at_once(way, table, flags, words, tmp_path):
    """And removes nothing."""
    run = tmp_path / "sam" / "tune"
    run.mkdir(parents=True)
    command = ["bench", "generalization", table, "--out", str(tmp_path), *way, *flags]
    done = subprocess.run(
        [sys.executable, "-m", "gnp_scale.cli", *command], capture_output=True, text=True, check=False
    )
    assert done.returncode == Exit.WRONG_CONFIG
    assert words in done.stderr
    assert run.exists()
    assert not (tmp_path / "logs").exists()


def test_an_outcome_without_its_configuration_is_one_line(rows):
    assert rows["sam"].run(Fake()) == Exit.FINISHED
    (folder_of(rows["sam"].folder, PLAN.tuning("sam")[0]) / CONFIG_FILE).unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        rows["sam"].is_finished()


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[" * 100_000,
        '{"num_passes": 1, "validation": {}}',
        '{"num_passes": 1, "validation": [0.5]}',
        '{"num_passes": 1, "validation": {"20": null}}',
        '{"num_passes": 1, "validation": {"20": "0.5"}}',
        '{"num_passes": null, "validation": {"20": 0.5}}',
        f'{{"num_passes": {10**400}, "validation": {{"20": 0.5}}}}',
        '{"num_passes": 1, "validation": {"20": NaN}}',
        '{"num_passes": 1, "validation": {"20": 0.5}, "test_best": "x"}',
        '{"num_passes": 1, "validation": {"20": 0.5}, "test_best": 1e999}',
    ],
)
def test_a_damaged_outcome_is_one_line(content, rows):
    assert rows["sam"].run(Fake()) == Exit.FINISHED
    path = folder_of(rows["sam"].folder, PLAN.tuning("sam")[0]) / outcome.OUTCOME_FILE
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"cannot be read .* remove it, and the run is measured again"):
        rows["sam"].is_finished()


def test_progress_weighs_runs_by_their_passes(rows, capsys):
    """Runs of sam cost two passes a step, those of plain training one: after all of plain, two thirds are left."""
    now = [0.0]
    progress = Progress([rows["plain"], rows["sam"]], clock=lambda: now[0])
    assert progress.line() == "0 of 54 runs are finished"
    rows["plain"].run(Fake())
    now[0] = 3.0
    progress.poll()
    now[0] = 3600.0
    progress.poll()
    progress.poll()
    lines = [line for line in capsys.readouterr().err.splitlines() if "runs are finished" in line]
    assert lines == ["gnp-scale: 27 of 54 runs are finished, about 2 h 00 min left"]
    rows["sam"].run(Fake(stops_at=22))
    now[0] = 7200.0
    progress.poll()
    assert "48 of 54 runs are finished, about 21 min left" in capsys.readouterr().err
    # A command that goes on does not count the runs of earlier ones in its speed.
    again = Progress([rows["plain"], rows["sam"]], clock=lambda: now[0])
    assert again.line() == "48 of 54 runs are finished"


def test_progress_counts_final_runs_of_the_chosen_point_alone(rows):
    """More tuning seeds may choose another one."""
    assert rows["sam"].run(Fake()) == Exit.FINISHED
    outcome_of = {run: folder_of(rows["sam"].folder, run) / outcome.OUTCOME_FILE for run in PLAN.tuning("sam")}
    other = PLAN.tuning("sam")[0].point
    for run, path in outcome_of.items():
        found = json.loads(path.read_text())
        path.write_text(json.dumps(found | {"validation": {"60": 0.99 if run.point == other else 0.1}}))
    assert Progress([rows["sam"]]).line() == "24 of 27 runs are finished"


@pytest.mark.parametrize("values", [(0.1, 0.3, 0.35), (0.0, 0.1, 0.5, 0.6), (0.2, 0.2, 0.2)])
def test_the_bootstrap_interval_is_that_of_all_resamples(values):
    """With few numbers all n^n resamples can be listed."""
    means = np.sort([np.mean(chosen) for chosen in itertools.product(values, repeat=len(values))])
    found = bootstrap(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.num == len(values)
    # A drawn quantile lies between exact ones whose levels are a little lower and higher.
    for quantile, bound in ((0.025, found.low), (0.975, found.high)):
        low, high = np.quantile(means, [quantile - 0.006, quantile + 0.006], method="inverted_cdf")
        assert low - 1e-12 <= bound <= high + 1e-12
    assert bootstrap(values) == found


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["noise50"], "there is no TABLE noise50: did you mean noise60?"),
        (["noise40", "--only", "sgd"], "there is no method sgd in this table: it has plain, plain-2x, sam"),
        (["groups", "--only", "sam"], "there is no method sam in this table"),
        (["noise40", "--again"], "name their methods with --only"),
        (["noise40", "--optim.learning-rate", "1"], "--optim.learning-rate would change the table: only --data.root"),
        (["noise40", "--steps", "29"], "29 is less than 30"),
        (["noise40", "--steps", "100"], "the 15 evaluations of a run: give --steps 90 or 105"),
        (["noise40", "--out", "gs://bucket/x"], "--out"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "generalization", *arguments]) == Exit.WRONG_CONFIG
    message = capsys.readouterr().err
    assert part in message
    assert message.count("\n") == 1
    assert not list(Path(tmp_path).iterdir()), "nothing was started"


def test_what_is_tuned():
    """Plain training: its rate and weight decay, whichever form that has; others the radius and the rate."""
    optim = OptimConfig(learning_rate=RATE, l2_in_loss=DECAY)
    assert Method().points(optim)[5] == (("optim.learning_rate", RATE / 2), ("optim.l2_in_loss", 5 * DECAY))
    decoupled = OptimConfig(name="adamw", learning_rate=RATE, weight_decay=0.05)
    assert Method().points(decoupled)[-1] == (("optim.learning_rate", 4 * RATE), ("optim.weight_decay", 0.25))
    assert Method("--gnp.alpha 1", radius_factor=10).points(optim)[4] == (
        ("gnp.r", 1.0),
        ("optim.learning_rate", RATE / 4),
    )
    assert {r for (_, r), _ in Method("--gnp.alpha 1").points(optim)} == set(RADII)


def test_missing_data_and_runs_of_other_settings_end_the_command_before_it_starts(rows, tmp_path, capsys):
    root, folder = str(tmp_path / "none"), str(tmp_path / "evidence")
    command = ["bench", "generalization", "photographs", "--out", folder, "--data.root", root]
    assert main(command) == Exit.WRONG_CONFIG
    assert "there is no data set grocery_store" in capsys.readouterr().err
    assert not (tmp_path / "evidence").exists()
    assert rows["sam"].run(Fake()) == Exit.FINISHED
    capsys.readouterr()
    other = ["bench", "generalization", "noise40", "--out", str(tmp_path), "--only", "plain", "--steps", "90"]
    assert main(other) == Exit.WRONG_CONFIG
    assert "train.num_steps 60 -> 90" in capsys.readouterr().err
    assert not (tmp_path / "logs").exists()
