"""Comparisons of runs: what is grouped, the statistics, the table and the plot."""

import math
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import make_run
from scipy import stats

from gnp_scale import recipe
from gnp_scale.cli import main
from gnp_scale.config import Config, ConfigError, DataConfig, GnpConfig, MeshConfig, TrainConfig
from gnp_scale.run.store import StorePath
from gnp_scale.sweeps import results
from gnp_scale.sweeps.record import Sweep, check_runs, check_same, keep
from gnp_scale.sweeps.report import write
from gnp_scale.sweeps.results import find_results, results_of
from gnp_scale.sweeps.statistics import mean_and_interval
from gnp_scale.sweeps.table import differing_keys, make_rows, paired, table

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20)


@given(VALUES)
def test_the_interval_is_that_of_scipy(values):
    mean, half = mean_and_interval(values)
    assert half is not None
    assert mean == pytest.approx(np.mean(values), abs=1e-9)
    if np.std(values) > 1e-6:
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-6, abs=1e-6)
    else:
        assert half < 1e-4


def test_the_interval_of_two_numbers_has_a_closed_form():
    """Student's t with one degree of freedom is Cauchy's distribution, with the quantile tan(pi (q - 1/2))."""
    mean, half = mean_and_interval([0.2, 0.4])
    assert mean == pytest.approx(0.3)
    assert half == pytest.approx(math.tan(math.pi * 0.475) * 0.1)


def test_one_number_has_no_interval():
    assert mean_and_interval([0.3]) == (0.3, None)


def config(r=0.05, seed=0, **values):
    return Config(gnp=GnpConfig(r=r), train=TrainConfig(num_steps=60, seed=seed), **values)


def cells(text):
    """The rows of a table, each by the names of its columns."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def compare(*folders):
    found = find_results([str(folder) for folder in folders])
    return write(found, differing_keys(found), None)


def test_runs_are_grouped_by_all_but_their_seed(tmp_path):
    """And by no value that affects only where they computed."""
    for seed, top1 in enumerate((0.5, 0.6, 0.7)):
        mesh = MeshConfig(fsdp=1 + seed)
        make_run(tmp_path / f"small{seed}", config(0.05, seed, mesh=mesh), {30: 0.9, 60: top1})
    make_run(tmp_path / "large", config(0.2), {60: 0.4}, hours=2.5)
    large, small = cells(compare(tmp_path))
    assert small == {
        "gnp.r": "0.05",
        "seeds": "3/3",
        "step": "60",
        "eval/top1": "0.6000",
        "95 %": "0.2484",
        "best": "0.9000",
        "eval/loss": "0.4000",
        "ms/step": "55.0",
        "hours": "3.000",
        "state": "finished",
    }
    assert large == {
        "gnp.r": "0.2",
        "seeds": "1/1",
        "step": "60",
        "eval/top1": "0.4000",
        "95 %": "",
        "best": "0.4000",
        "eval/loss": "0.6000",
        "ms/step": "70.0",
        "hours": "2.500",
        "state": "finished",
    }


def test_runs_that_have_not_come_equally_far_are_said_to_be(tmp_path):
    make_run(tmp_path / "a", config(seed=0), {20: 0.3, 60: 0.5})
    make_run(tmp_path / "b", config(seed=1), {20: 0.4}, exit_code=None)
    make_run(tmp_path / "c", config(seed=2), {}, exit_code=77)
    text = compare(tmp_path)
    (row,) = cells(text)
    assert (row["seeds"], row["step"], row["eval/top1"]) == ("1/3", "20-60", "0.4500")
    assert row["state"] == "1 finished; 1 running; 1 diverged"
    assert "of different steps, 20 to 60" in text


def test_runs_without_evaluations_have_empty_cells_and_no_plot(tmp_path):
    """Nor is there that of an earlier comparison beside the new table."""
    make_run(tmp_path / "earlier", config(), {60: 0.5})
    write(find_results([str(tmp_path / "earlier")]), (), tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 2
    make_run(tmp_path / "runs" / "a", config(), {}, exit_code=None)
    found = find_results([str(tmp_path / "runs")])
    (row,) = cells(write(found, differing_keys(found), tmp_path / "out"))
    assert (row["step"], row["eval/top1"], row["best"], row["eval/loss"], row["ms/step"]) == ("",) * 5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.md"]


@pytest.mark.parametrize("name", ["table.md", "plot.png"])
@pytest.mark.parametrize("scores", [{60: 0.5}, {}], ids=["a plot", "no plot"])
def test_files_of_somebody_else_are_left_alone(tmp_path, name, scores, capsys):
    (tmp_path / name).write_bytes(b"\xff mine")
    make_run(tmp_path / "run", config(), scores)
    assert main(["compare", str(tmp_path / "run"), "--out", str(tmp_path)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"gnp-scale: {tmp_path / name} is not of a comparison: move it away, or choose another folder"
    assert (tmp_path / name).read_bytes() == b"\xff mine"
    assert {path.name for path in tmp_path.iterdir()} == {name, "run"}


def test_the_folder_of_a_sweep_is_its_own(tmp_path):
    """Its report must not fail when all of it is trained."""
    keep(tmp_path, Sweep("a.py:b", (), config(0.1), {"gnp.r=0.1": {"gnp.r": 0.1}}))
    (tmp_path / "table.md").touch()
    make_run(tmp_path / "gnp.r=0.1", config(0.1), {60: 0.5})
    write(find_results([str(tmp_path)]), (), tmp_path)
    assert "0.5000" in (tmp_path / "table.md").read_text()


def test_runs_of_one_setting_and_seed_are_not_averaged(tmp_path):
    """They are copies or repetitions, not independent draws; an interval over them would be too narrow."""
    for name, top1 in (("a", 0.5), ("b", 0.5)):
        make_run(tmp_path / name, config(), {60: top1})
    rows = cells(compare(tmp_path / "a", tmp_path / "b"))
    assert [(row["run"], row["seeds"], row["95 %"]) for row in rows] == [
        (str(tmp_path / name), "1/1", "") for name in "ab"
    ]


def test_a_run_that_is_given_twice_counts_once(tmp_path):
    make_run(tmp_path / "a", config(), {60: 0.5})
    (row,) = cells(compare(tmp_path, tmp_path / "a", tmp_path / "a" / ".." / "a"))
    assert row["seeds"] == "1/1"


def test_two_settings_are_compared_seed_by_seed_at_their_last_common_step(tmp_path):
    """The difference has a narrow interval although the seeds differ much."""
    for seed, base in enumerate((0.3, 0.5, 0.7)):
        make_run(tmp_path / f"1{seed}", config(0.05, seed), {20: 0.1, 40: base, 60: 0.9})
        make_run(tmp_path / f"2{seed}", config(0.2, seed), {20: 0.1, 40: base + 0.05 + 0.01 * seed})
    make_run(tmp_path / "3", config(0.2, seed=9), {20: 0.0})
    half = stats.t.ppf(0.975, 2) * 0.01 / math.sqrt(3)
    assert (
        "second row minus the first, at step 40, paired over 3 common seeds: "
        f"+0.0600 (95 % interval {0.06 - half:+.4f} to {0.06 + half:+.4f})."
    ) in compare(tmp_path)


def test_two_settings_without_a_common_seed_or_step_have_no_difference(tmp_path):
    make_run(tmp_path / "a", config(0.05, 0), {20: 0.1})
    make_run(tmp_path / "b", config(0.2, 1), {20: 0.1})
    make_run(tmp_path / "c", config(0.4, 0), {30: 0.1})
    make_run(tmp_path / "d", config(0.8, 0), {20: 0.15})
    found = find_results([str(tmp_path)])
    one, other_seed, other_step, same = make_rows(found, differing_keys(found))
    assert paired(one, other_seed) is None
    assert paired(one, other_step) is None
    assert "+0.0500 (no interval with one seed)" in (paired(one, same) or "")


def test_a_run_folder_of_version_0_1_0_is_compared(tmp_path):
    with tarfile.open(Path(__file__).parent / "fixtures" / "run_folder_v1" / "run.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (row,) = cells(compare(tmp_path / "run"))
    assert (row["step"], row["eval/top1"], row["state"]) == ("20", "0.2639", "preempted, saved")


def test_a_folder_without_runs_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        find_results([str(tmp_path)])
    with pytest.raises(ConfigError, match="holds no run"):
        find_results([str(tmp_path / "missing")])


def test_a_sweep_lists_points_that_have_not_been_started(tmp_path):
    points = {f"gnp.r={r},train.seed={seed}": {"gnp.r": r, "train.seed": seed} for r in (0.1, 0.2) for seed in (0, 1)}
    sweep, _ = keep(tmp_path, Sweep("a.py:b", (), config(0.1), points))
    make_run(tmp_path / "gnp.r=0.1,train.seed=1", config(0.1, 1), {60: 0.5})
    first, second = cells(table(make_rows(results_of(tmp_path, sweep, {}), sweep.keys)))
    assert (first["seeds"], first["eval/top1"], first["state"]) == ("1/2", "0.5000", "1 not started; 1 finished")
    assert (second["gnp.r"], second["seeds"], second["state"]) == ("0.2", "0/2", "not started")
    states = {f"gnp.r=0.2,train.seed={seed}": "failed, exit code 1" for seed in (0, 1)}
    _, second = cells(table(make_rows(results_of(tmp_path, sweep, states), sweep.keys)))
    assert second["state"] == "failed, exit code 1"
    assert len(find_results([str(tmp_path)])) == 1, "compare shows what exists"


def test_a_point_that_cannot_be_read_hides_no_other(tmp_path, capsys):
    points = {f"gnp.r={r}": {"gnp.r": r} for r in (0.1, 0.2)}
    sweep, _ = keep(tmp_path, Sweep("a.py:b", (), config(0.1), points))
    for r in (0.1, 0.2):
        make_run(tmp_path / f"gnp.r={r}", config(r), {60: 0.5})
    (tmp_path / "gnp.r=0.1" / "config.json").write_text("{")
    first, second = cells(table(make_rows(results_of(tmp_path, sweep, {}), sweep.keys)))
    assert (first["gnp.r"], first["state"]) == ("0.1", "unreadable")
    assert (second["eval/top1"], second["state"]) == ("0.5000", "finished")
    assert "config.json cannot be read" in capsys.readouterr().err


def test_a_report_of_another_sweep_is_refused(tmp_path):
    check_same(tmp_path, Sweep("a.py:b", (), config(), {"any": {"gnp.r": 1.0}}))
    keep(tmp_path, Sweep("a.py:b", (), config(0.1), {"gnp.r=0.1": {"gnp.r": 0.1}}))
    check_same(tmp_path, Sweep("a.py:b", (), config(), {"gnp.r=0.3": {"gnp.r": 0.3}}))
    with pytest.raises(ConfigError, match=r"varies gnp.r, not train.seed: choose another --sweep-dir"):
        check_same(tmp_path, Sweep("a.py:b", (), config(), {"train.seed=1": {"train.seed": 1}}))
    another = config(0.1, data=DataConfig(batch_size=64))
    with pytest.raises(ConfigError, match=r"holds a sweep of another recipe \(data.batch_size .*\): choose another"):
        check_same(tmp_path, Sweep("a.py:b", (), another, {"gnp.r=0.1": {"gnp.r": 0.1}}))


@pytest.mark.parametrize("option", [[], ["--report"]])
def test_a_run_of_other_settings_is_no_point_of_a_sweep(tmp_path, option, capsys):
    """Its scores would stand in the table as those of the point, which nobody has trained."""
    command = ["sweep", "configs/digits.py:quickstart", "--sweep-dir", str(tmp_path), "--grid", "gnp.r=0.07"]
    base = recipe.load("configs/digits.py:quickstart")
    keep(tmp_path, Sweep("configs/digits.py:quickstart", (), base, {"gnp.r=0.07": {"gnp.r": 0.07}}))
    make_run(tmp_path / "gnp.r=0.07", replace(base, gnp=replace(base.gnp, r=0.2)), {60: 0.5})
    assert main([*command, *option]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        f"gnp-scale: {tmp_path}/gnp.r=0.07 holds another run than that point of the sweep (gnp.r 0.2 -> 0.07): move it "
        "away, or choose another --sweep-dir\n"
    )


def test_a_run_may_compute_elsewhere_than_its_sweep(tmp_path):
    sweep, _ = keep(tmp_path, Sweep("a.py:b", (), config(), {"gnp.r=0.1": {"gnp.r": 0.1}, "gnp.r=0.2": {"gnp.r": 0.2}}))
    make_run(tmp_path / "gnp.r=0.1", config(0.1, mesh=MeshConfig(fsdp=2)), {60: 0.5})
    check_runs(tmp_path, sweep)


def test_a_run_that_cannot_be_read_hides_no_other(tmp_path, capsys):
    for name in ("good", "damaged"):
        make_run(tmp_path / "runs" / name, config(), {60: 0.5})
    damaged = tmp_path / "runs" / "damaged"
    (damaged / "config.json").write_text("{")
    assert [result.name for result in find_results([str(tmp_path / "runs")])] == [str(tmp_path / "runs" / "good")]
    assert f"{damaged}: {damaged}/config.json cannot be read" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        find_results([str(tmp_path / "runs" / "good"), str(damaged)])
    (tmp_path / "runs" / "good" / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"no run of .*runs can be read: give other folders"):
        find_results([str(tmp_path / "runs")])


def test_runs_on_a_store_are_found_below_their_folder(monkeypatch):
    def missing(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(StorePath, "names", lambda self: ["a/", "b/", "notes.txt"])
    monkeypatch.setattr(StorePath, "read_bytes", missing)
    monkeypatch.setattr(StorePath, "exists", lambda self: str(self).endswith("a/config.json"))
    monkeypatch.setattr(results, "run_folder", lambda option, text: StorePath(text))
    monkeypatch.setattr(results, "read_result", lambda folder, name: (str(folder), name))
    assert find_results(["gs://bucket/sweep"]) == [("gs://bucket/sweep/a", "gs://bucket/sweep/a")]
