"""The plot of a comparison: what is on its axes, and where its marks are."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from run_folders import make_run
from test_sweep_compare import config

from gnp_scale.config import OptimConfig
from gnp_scale.sweeps import chart
from gnp_scale.sweeps.plot import is_geometric, plot
from gnp_scale.sweeps.results import find_results
from gnp_scale.sweeps.table import differing_keys, make_rows


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


@pytest.mark.parametrize("values", [(2.2, 2.35), (25.0, 30.0), (1e-4, 3e-4), (2.0, 2.0)])
def test_numbers_that_are_no_shares_have_an_axis_of_their_size(values):
    marks = [chart.Mark(float(number), value, None, (value,)) for number, value in enumerate(values)]
    each = chart.Chart("x", "loss", {"": marks}, {0.0: "0", 1.0: "1"}, is_log=False, joins=True, are_shares=False)
    low, high = chart._y_range(each)
    assert 0 < low <= min(values)
    assert max(values) <= high
    assert high - low <= max(np.ptp(values), 0.011 * max(values))
    chart.draw(each)


def test_first_marks_of_lines_are_joined_if_asked_for():
    lines = {name: [chart.Mark(x, y, None, (), name)] for name, x, y in (("a", 1.0, 0.5), ("b", 3.0, 0.7))}
    each = chart.Chart("x", "y", lines, {1.0: "1", 3.0: "3"}, is_log=False, joins=False)
    alone, joined = (np.asarray(chart.draw(replace(each, joined=names))) for names in ((), ("a", "b")))
    ys, xs = np.nonzero(np.abs(joined.astype(int) - alone).sum(axis=2))
    assert np.ptp(xs) > 500, "from one to the other"
    assert np.corrcoef(xs, ys)[0, 1] < -0.999, "a straight line upwards"


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
