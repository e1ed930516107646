"""The report of `gnp-scale bench generalization`: pairs, intervals, the frontier, and what is written."""

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from gnp_scale.evidence import report
from gnp_scale.evidence.methods import METHODS
from gnp_scale.evidence.outcome import Outcome
from gnp_scale.evidence.plan import Plan
from gnp_scale.evidence.summary import Comparison, Summary, bootstrap
from gnp_scale.evidence.tables import TABLES

PLAN = Plan(TABLES["noise40"], num_seeds=3, num_tuning_seeds=2, num_steps=60)


def point(r, rate=0.05):
    return ("gnp.r", r), ("optim.learning_rate", rate)


CHOSEN = point(0.1)


def summary(name, cost, scores, chosen=CHOSEN, **other):
    """A method with test accuracies by seed; its last checkpoint is 0.1 worse."""
    outcomes = {
        seed: Outcome(60.0 * cost, 2e12 * cost, 30.0 * cost, {"30": 0.6, "60": 0.5}, 0.9, test, test - 0.1)
        for seed, test in scores.items()
    }
    tried = {point(0.05): 0.5, point(0.1): 0.6, point(0.1, 0.2): 0.55, point(0.2): 0.4}
    counts = {"num_diverged": 0, "num_runs": 3} | other
    return Summary(name, METHODS[name], 60.0 * cost, chosen, tried, outcomes, **counts)


PLAIN = summary("plain", 1, {0: 0.70, 1: 0.72, 2: 0.71})
DOUBLE = summary("plain-2x", 2, {0: 0.70, 1: 0.74, 2: 0.71}, point(0.05))
SAM = summary("sam", 2, {0: 0.78, 1: 0.81, 2: 0.80})
MOMENTUM = summary("momentum", 1, {0: 0.71, 1: 0.74, 2: 0.72}, point(0.2))
EVERY = summary("every-2", 1.5, {0: 0.77, 1: 0.79, 2: 0.80})
ALL = Comparison((PLAIN, DOUBLE, SAM, EVERY, MOMENTUM))


def test_differences_are_paired_by_the_seeds_that_both_have():
    difference = SAM.difference(PLAIN, "test_best")
    pairs = np.subtract([0.78, 0.81, 0.80], [0.70, 0.72, 0.71])
    assert difference == bootstrap(pairs)
    assert difference.mean == pytest.approx(pairs.mean())
    assert difference.low < difference.mean < difference.high
    partial = summary("sam", 2, {2: 0.80, 1: 0.81, 5: 0.1})
    assert partial.difference(PLAIN, "test_best").num == 2
    assert partial.difference(PLAIN, "test_best").mean == pytest.approx(0.09)
    assert summary("sam", 2, {5: 0.1}).difference(PLAIN, "test_best") is None


def test_pairs_of_seeds_remove_what_the_seeds_share():
    """Two methods that differ by the same amount on every seed have an interval without width."""
    hard = {0: 0.1, 1: 0.5, 2: 0.9}
    ours = summary("sam", 1, {seed: accuracy + 0.02 for seed, accuracy in hard.items()})
    difference = ours.difference(summary("plain", 1, hard), "test_best")
    assert difference.high - difference.low < 1e-12


def test_the_frontier_has_what_no_other_equals_for_less():
    assert [each.name for each in ALL.frontier] == ["momentum", "every-2", "sam"]
    worse = replace(SAM, outcomes={seed: replace(found, test_best=0.75) for seed, found in SAM.outcomes.items()})
    assert [each.name for each in Comparison((PLAIN, worse, EVERY)).frontier] == ["plain", "every-2"]
    assert Comparison((summary("plain", 1, {}), SAM)).frontier == [SAM]


def test_methods_of_equal_accuracy_and_compute_are_on_the_frontier_together():
    """Nothing tells which of the two is the better one; with more compute, an equal one is not on it."""
    scores = {0: 0.78, 1: 0.81, 2: 0.80}
    twin, dearer = summary("late-50", 2, scores), summary("stale", 2.5, scores)
    assert Comparison((PLAIN, SAM, twin, dearer)).frontier == [PLAIN, SAM, twin]


def test_the_share_of_the_gain_of_the_best_cheap_method():
    cheap, best, share = ALL.cheap_share()
    assert (cheap.name, best.name) == ("momentum", "sam")
    assert share == pytest.approx(np.mean([0.01, 0.02, 0.01]) / np.mean([0.08, 0.09, 0.09]))
    assert Comparison((PLAIN, DOUBLE)).cheap_share() is None
    worse = replace(SAM, outcomes={seed: replace(found, test_best=0.1) for seed, found in SAM.outcomes.items()})
    assert Comparison((PLAIN, worse, MOMENTUM)).cheap_share()[1].name == "momentum"
    assert Comparison((PLAIN, worse)).cheap_share() is None


def test_a_share_of_a_gain_that_may_be_none_is_not_told():
    """Neither if the interval of the largest gain holds 0, nor if no cheap method gains anything."""
    spread = dict(zip(PLAIN.outcomes, (-0.02, 0.03, 0.02), strict=True))
    unsure = summary("sam", 2, {seed: found.test_best + spread[seed] for seed, found in PLAIN.outcomes.items()})
    assert Comparison((PLAIN, unsure, MOMENTUM)).cheap_share()[1].name == "momentum"
    assert Comparison((PLAIN, unsure)).cheap_share() is None
    worse = summary("momentum", 1, {seed: found.test_best - 0.01 for seed, found in PLAIN.outcomes.items()})
    assert Comparison((PLAIN, SAM, worse)).cheap_share() is None
    assert "gains the most" not in report.markdown(PLAN, Comparison((PLAIN, SAM, worse)))


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def test_the_table_says_what_was_reached_at_what_cost():
    text = report.markdown(PLAN, ALL)
    rows = cells(text)
    assert list(rows) == ["plain", "plain-2x", "sam*", "every-2*", "momentum*"]
    sam = rows["sam*"]
    assert (sam["compute"], sam["chosen"], sam["test"], sam["last"]) == (
        "2.00",
        "r 0.1, learning_rate 0.05",
        "79.67",
        "69.67",
    )
    assert sam["test - plain"].startswith("+8.67 [+8.00, +9.00]")
    assert sam["test - plain-2x"].startswith("+8.00 [")
    assert (sam["train"], sam["held out"], sam["s"], sam["TFLOP"]) == ("90.00", "60.00", "60", "4.00")
    assert (sam["test / TFLOP"], sam["test / s"], sam["runs"]) == ("19.9", "1.3", "3/3")
    assert rows["plain"]["test - plain"] == ""
    # Two learning rates were tried, so one of them is no edge.
    edges = ["r 0.05, learning_rate 0.05 (edge)", "r 0.2, learning_rate 0.05 (edge)"]
    assert [rows[name]["chosen"] for name in ("plain-2x", "momentum*")] == edges
    assert "momentum gains the most: 15 % of the gain of sam" in text
    assert "2 tuning seeds for each of 12 points, 3 seeds" in text


def test_an_unfinished_method_has_a_row_and_one_run_no_interval():
    partly = summary("sam", 2, {1: 0.8})
    none = summary("gnp-0.8", 2, {}, None)
    diverged = summary("asam", 2, {0: 0.7, 1: 0.7}, num_diverged=1)
    rows = cells(report.markdown(PLAN, Comparison((PLAIN, partly, none, diverged))))
    assert (rows["sam*"]["runs"], rows["sam*"]["test - plain"]) == ("1/3", "+8.00")
    assert (rows["gnp-0.8"]["test"], rows["gnp-0.8"]["chosen"], rows["gnp-0.8"]["runs"]) == ("", "", "0/3")
    assert rows["asam"]["runs"] == "2/3, 1 diverged"


def test_the_files_have_the_numbers_of_every_seed(tmp_path):
    text = report.write(PLAN, ALL, tmp_path)
    assert (tmp_path / "table.md").read_text() == text
    methods = json.loads((tmp_path / "table.json").read_bytes())["methods"]
    sam = methods["sam"]
    assert sam["seeds"]["1"]["test_best"] == 0.81
    assert sam["test_best_minus"]["plain"]["mean"] == pytest.approx(0.26 / 3)
    assert sam["test_final_minus"]["plain-2x"]["num"] == 3
    assert "plain" not in methods["plain"]["test_best_minus"]
    assert sam["chosen"] == {"gnp.r": 0.1, "optim.learning_rate": 0.05}
    assert sam["held_out_of_points"]["r 0.1, learning_rate 0.2"] == 0.55
    assert (sam["is_on_frontier"], methods["plain-2x"]["is_on_frontier"]) == (True, False)
    with Image.open(tmp_path / "frontier.png") as picture:
        assert picture.width > 600


def test_without_results_there_is_a_table_and_no_plot(tmp_path):
    report.write(PLAN, Comparison((summary("plain", 1, {}, None),)), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table.json", "table.md"]


@pytest.fixture
def charts(monkeypatch):
    """The charts that are drawn."""
    charts, draw = [], report.draw
    monkeypatch.setattr(report, "draw", lambda chart: charts.append(chart) or draw(chart))
    return charts


def test_the_plot_has_compute_on_x_and_a_number_for_each_method(charts):
    report.plot(ALL)
    (chart,) = charts
    assert list(chart.lines) == ["1  plain", "2  plain-2x", "3  sam", "4  every-2", "5  momentum"]
    assert [marks[0].word for marks in chart.lines.values()] == ["1", "2", "3", "4", "5"]
    places = [marks[0].x for marks in chart.lines.values()]
    assert places == pytest.approx([1, 2, 2, 1.5, 1], abs=0.02)
    assert len(set(places)) == 5, "equal costs are side by side"
    assert chart.ticks == {1.0: "1", 2.0: "2", 1.5: "1.5"}
    assert chart.joined == ["5  momentum", "4  every-2", "3  sam"]


def test_the_plot_leaves_out_methods_that_learned_nothing(charts):
    """Here it is even on the frontier, as the only method with so little compute."""
    collapsed = summary("reused", 0.5, {0: 0.1, 1: 0.15})
    assert collapsed in Comparison((PLAIN, collapsed, SAM)).frontier
    report.plot(Comparison((PLAIN, collapsed, SAM)))
    (chart,) = charts
    assert list(chart.lines) == ["1  plain", "3  sam"]
    assert report.plot(Comparison((collapsed,))) is not None
