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

from gnp_scale.config import Config, ConfigError, GnpConfig, MeshConfig, OptimConfig, TrainConfig
from gnp_scale.run.store import StorePath
from gnp_scale.sweeps import chart, results
from gnp_scale.sweeps.plot import is_geometric, plot
from gnp_scale.sweeps.record import Sweep, keep
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
    make_run(tmp_path / "runs" / "a", config(), {}, exit_code=None)
    found = find_results([str(tmp_path / "runs")])
    (row,) = cells(write(found, differing_keys(found), tmp_path / "out"))
    assert (row["step"], row["eval/top1"], row["best"], row["eval/loss"], row["ms/step"]) == ("",) * 5
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["table.md"]


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


def rows_of(tmp_path, *configs):
    for number, each in enumerate(configs):
        make_run(tmp_path / f"{number:02}", each, {60: 0.5 + 0.01 * number})
    found = find_results([str(tmp_path)])
    return make_rows(found, differing_keys(found))


@pytest.fixture
def drawn(monkeypatch):
    """What is drawn."""
    charts = []
    monkeypatch.setattr("gnp_scale.sweeps.plot.draw", lambda each: charts.append(each) or chart.draw(each))
    return charts


def test_the_plot_has_the_number_with_most_values_on_x_and_a_line_for_each_other_setting(tmp_path, drawn):
    optims = [OptimConfig(weight_decay=decay, clip_norm=clip) for decay in (0.0, 0.1) for clip in (None, 1.0)]
    rows = rows_of(tmp_path, *(config(r, optim=optim) for optim in optims for r in (0.05, 0.1, 0.2)))
    picture = plot(rows)
    (shown,) = drawn
    assert picture is not None
    assert picture.width > 600
    assert (shown.x_label, shown.is_log) == ("gnp.r (logarithmic)", True)
    assert shown.ticks == {0.05: "0.05", 0.1: "0.1", 0.2: "0.2"}
    assert list(shown.lines) == [
        f"optim.weight_decay {decay}, optim.clip_norm {clip}" for decay in ("0.0", "0.1") for clip in ("none", "1.0")
    ]
    assert [mark.x for mark in shown.lines["optim.weight_decay 0.0, optim.clip_norm none"]] == [0.05, 0.1, 0.2]


def test_settings_without_numbers_stand_side_by_side(tmp_path, drawn):
    plot(rows_of(tmp_path, config(optim=OptimConfig(clip_norm=None)), config(optim=OptimConfig(clip_norm=1.0))))
    (shown,) = drawn
    assert (shown.x_label, shown.joins, shown.ticks) == ("optim.clip_norm", False, {0.0: "none", 1.0: "1.0"})


def test_the_marks_of_a_plot_are_where_the_numbers_are(tmp_path):
    """The mean is the only large dot; the interval and the line are thin."""
    marks = [chart.Mark(1.0, 0.5, None, (0.5,)), chart.Mark(3.0, 0.7, None, (0.7,))]
    picture = chart.draw(chart.Chart("x", "y", {"": marks}, {1.0: "1", 3.0: "3"}, is_log=False, joins=False))
    is_blue = (np.asarray(picture).astype(int) - [31, 119, 180]).__abs__().sum(axis=2) < 10
    ys, xs = np.nonzero(is_blue)
    left = xs < xs.mean()
    (low_x, low_y), (high_x, high_y) = ((xs[side].mean(), ys[side].mean()) for side in (left, ~left))
    assert low_x < high_x
    bottom, top = 440 - 64, 20
    assert (low_y, high_y) == pytest.approx((bottom, top), abs=1), "ticks from 0.5 to 0.7"


def test_a_plot_of_one_run_or_of_equal_or_not_finite_numbers_is_drawn(tmp_path):
    make_run(tmp_path / "a", config(), {60: 1.0})
    rows = make_rows(find_results([str(tmp_path)]), [])
    assert plot(rows) is not None
    bad = replace(rows[0].runs[0], evaluations={60: {"eval/top1": math.nan}})
    assert plot(make_rows([bad], [])) is None


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([0.05, 0.1, 0.2], True),
        ([1, 2, 5, 10], True),
        ([0.1, 0.2, 0.3], False),
        ([0.0, 0.1, 0.2, 0.4], False),
        ([0.1, 0.2], False),
        ([-1, 1, 10], False),
    ],
)
def test_geometric_values_are_logarithmic(values, is_log):
    assert is_geometric(values) == is_log


@given(st.floats(0, 1), st.floats(1e-3, 1))
def test_ticks_are_few_and_cover_the_range(low, width):
    ticks = chart.nice_ticks(low, low + width)
    assert 2 <= len(ticks) <= 8
    assert ticks[0] <= low + 1e-9
    assert ticks[-1] >= low + width - 1e-9


def test_runs_on_a_store_are_found_below_their_folder(monkeypatch):
    monkeypatch.setattr(StorePath, "names", lambda self: ["a/", "b/", "notes.txt"])
    monkeypatch.setattr(StorePath, "exists", lambda self: str(self).endswith("a/config.json"))
    monkeypatch.setattr(results, "run_folder", lambda option, text: StorePath(text))
    monkeypatch.setattr(results, "read_result", lambda folder, name: (str(folder), name))
    assert find_results(["gs://bucket/sweep"]) == [("gs://bucket/sweep/a", "gs://bucket/sweep/a")]
