"""`gnp-scale bench generalization --sharpness`: which runs are measured, once each, and what is made of the numbers."""

import errno
import json
from dataclasses import replace

import pytest

from gnp_scale import recipe
from gnp_scale.cli import main
from gnp_scale.config import ConfigError
from gnp_scale.evidence import minima, outcome, report
from gnp_scale.evidence.outcome import Outcome
from gnp_scale.evidence.plan import Plan, num_passes
from gnp_scale.evidence.row import Row
from gnp_scale.evidence.tables import TABLES
from gnp_scale.sharpness.measure import Report

PLAN = Plan(TABLES["noise40"], num_seeds=3, num_tuning_seeds=1, num_steps=60)


def train(run, config, run_dir):
    """Trains nothing; the last final run of SAM diverges."""
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(recipe.to_json(config))
    has_diverged = run.is_final and (run.method, run.seed) == ("sam", 2)
    scores = {} if has_diverged else {"validation": {"60": 0.5}}
    result = Outcome(num_passes(config), **scores)
    outcome.write(run_dir, result)
    return result


def scores(method, seed):
    """A penalised minimum is half as sharp, and 1 point more robust; each seed shifts both methods alike."""
    factor = 0.5 if method == "sam" else 1.0
    names = [name for quantity in minima._QUANTITIES.values() for name in quantity.names]
    return {
        name: 0.5 + seed / 100 + (factor == 0.5) / 100 if name.startswith("robustness") else factor * (8 + seed)
        for name in names
    }


@pytest.fixture
def measured(monkeypatch):
    """The folders that were measured, in order."""
    pytest.importorskip("matfree")  # the command asks for it before it measures anything
    folders = []

    def measure(config, run_dir, settings, output, num_averaged):
        assert config.data.eval_split == "test", "robustness is that on the test images"
        assert (output, num_averaged) == (None, None)
        folders.append(run_dir)
        return Report(60, scores(run_dir.parent.name, int(run_dir.name.rpartition("=")[2])))

    monkeypatch.setattr(minima, "measure_run", measure)
    return folders


@pytest.fixture(scope="module")
def configs():
    return PLAN.configs()


@pytest.fixture
def rows(configs, tmp_path):
    rows = [Row(PLAN, name, configs[name], tmp_path) for name in ("plain", "sam", "gsam")]
    for row in rows[:2]:
        row.run(train)
    return rows


def cells(text):
    head, _, *body = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    )
    return {row[0]: dict(zip(head, row, strict=True)) for row in body}


@pytest.mark.slow
def test_each_final_run_is_measured_once_and_differences_are_paired(rows, measured):
    minima.measure_all(rows)
    names = [(path.parent.name, path.name.partition(",")[0], path.name[-1]) for path in measured]
    finals = [("plain", "final", "0"), ("plain", "final", "1"), ("plain", "final", "2")]
    assert names == [*finals, ("sam", "final", "0"), ("sam", "final", "1")], "one has diverged"
    (measured[0] / minima.SCORES_FILE).unlink()
    minima.measure_all(rows)
    assert measured[5:] == measured[:1]

    text = minima.report_on(rows)
    table = cells(text)
    assert list(table) == ["plain", "sam"]
    assert (table["plain"]["eigenvalue"], table["plain"]["eigenvalue - plain"], table["plain"]["runs"]) == (
        "9",
        "",
        "3",
    )
    assert table["sam"]["eigenvalue - plain"] == "-4.25 [-4.5, -4]", "of the two seeds that both have"
    assert table["sam"]["corrupted"] == "51.50"
    assert table["sam"]["4 bits - plain"].startswith("+1.00 [+1.00, +1.00")
    assert (rows[0].folder / "sharpness.md").read_text() == text
    content = json.loads((rows[0].folder / "sharpness.json").read_bytes())
    assert content["methods"]["sam"]["1"] == scores("sam", 1)
    assert content["settings"]["num_examples"] == minima.SETTINGS.num_examples


def test_runs_of_other_settings_are_measured_again(rows, measured, monkeypatch):
    minima.measure_all(rows[:1])
    monkeypatch.setattr(minima, "SETTINGS", replace(minima.SETTINGS, num_examples=7))
    assert "plain" not in cells(minima.report_on(rows))
    minima.measure_all(rows[:1])
    assert measured[3:] == measured[:3]


def test_processes_measure_the_runs_of_the_main_one_which_alone_writes(rows, measured, monkeypatch):
    """The main process has found two runs that are not measured; this one still sees five."""
    monkeypatch.setattr(report, "is_main_process", lambda: False)
    monkeypatch.setattr(minima, "broadcast", lambda missing: [missing[0], missing[3]])
    minima.measure_all(rows)
    assert [path.parent.name for path in measured] == ["plain", "sam"]
    minima.report_on(rows)
    assert not list(rows[0].folder.rglob(minima.SCORES_FILE))


def test_what_cannot_be_measured_is_one_line(rows, measured, capsys, tmp_path):
    with pytest.raises(ConfigError, match="no final run of gsam is finished: run the same command without --sharpness"):
        minima.measure_all(rows[2:])
    minima.measure_all(rows[:1])
    (measured[0] / minima.SCORES_FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"sharpness\.json cannot be read .*: remove it, and the run is measured"):
        minima.report_on(rows)
    assert main(["bench", "generalization", "noise40", "--sharpness", "--row", "sam"]) == 2
    assert "not allowed with argument --sharpness" in capsys.readouterr().err


def test_a_full_disk_is_one_line(rows, measured, monkeypatch):
    def replace_file(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(report, "replace_file", replace_file)
    with pytest.raises(
        ConfigError, match=r"seed=0 cannot be written \(No space left on device\): choose another --out"
    ):
        minima.measure_all(rows)
