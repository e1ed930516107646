"""What the steps of real recipes take on each chip does not grow: memory, FLOPs, time of a chip, and collectives."""

import json
from dataclasses import replace

import jax
import pytest
from budgets import (
    ALLOWED,
    COMMAND,
    FILE,
    FLOPS_COMMAND,
    FLOPS_FILE,
    GOALS,
    RECIPES,
    ROWS,
    VIT_B,
    measure,
    traced_flops,
    worse,
)

from gnp_scale import recipe
from gnp_scale.config import MeshConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.planning import absent_data
from gnp_scale.planning.compiled import flops_of, make_task

FILE_CONTENT = json.loads(FILE.read_text())
GOLDEN = FILE_CONTENT["rows"]
GOLDEN_FLOPS = json.loads(FLOPS_FILE.read_text())["recipes"]
STEP = {"plain": {"FLOPs": 1000, "fast network, bytes": 0}, "penalised": {"FLOPs": 2000, "fast network, bytes": 50}}


def test_the_golden_file_has_no_row_that_is_not_planned():
    assert GOLDEN.keys() <= (ROWS | RECIPES).keys()
    assert {name for name, row in ROWS.items() if not row.is_gpu} <= GOLDEN.keys(), f"run `{COMMAND}`"
    assert GOLDEN_FLOPS.keys() == RECIPES.keys(), f"run `{FLOPS_COMMAND}`"


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if row.is_long else pytest.mark.slow) for name, row in ROWS.items()],
)
def test_a_step_takes_no_more_than_its_budget(name):
    row = ROWS[name]
    if row.missing or name not in GOLDEN:
        pytest.skip(row.missing or f"{name} is not in {FILE.name}: no machine with its compiler has measured it")
    found = worse(measure(row), GOLDEN[name])
    assert not found, (
        f"{name} ({row.recipe} on {row.num_slices} x {row.topology}): {'; '.join(found)}. If it was meant to grow, "
        f"say so in the changelog and write the budgets again with `{COMMAND}`. They are of JAX {FILE_CONTENT['jax']} "
        f"and libtpu {FILE_CONTENT['libtpu']}."
    )


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_takes_no_more_flops_and_a_second_pass_no_more_than_the_first(name):
    """By its traced steps, which takes seconds; the compiled ones are below."""
    found, golden = traced_flops(name), GOLDEN_FLOPS[name]
    assert found.keys() == golden.keys()
    for kind, flops in found.items():
        assert flops <= min(ALLOWED * golden[kind], 2.005 * found["plain"]), f"if it was meant to, `{FLOPS_COMMAND}`"


@pytest.mark.long
@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_fits_a_slice_and_its_second_pass_costs_no_more_than_the_first(name):
    """As it is, and within its budget where the file has one. For TPUs, a program that does not fit is refused."""
    row = RECIPES[name]
    if row.missing:
        pytest.skip(row.missing)
    steps = measure(row)
    assert worse(steps, GOLDEN.get(name, steps)) == []
    for step in steps.values():
        assert step["FLOPs"] <= 2.005 * steps["plain"]["FLOPs"]


def test_what_is_worse_is_named():
    assert worse(STEP, STEP) == []
    grown = {**STEP, "plain": {"FLOPs": 1021, "fast network, bytes": 7}}
    assert worse(grown, STEP) == [
        "FLOPs of the plain step are 1,021, and were 1,000",
        "fast network, bytes of the plain step are 7, and were 0",
    ]
    assert worse({**STEP, "plain": {"FLOPs": 1019, "fast network, bytes": 0}}, STEP) == []


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.row}: {goal.quantity}")
def test_a_penalised_step_reaches_its_goal(goal):
    """Numbers of the golden file, which the tests above hold."""
    if goal.row not in GOLDEN:
        pytest.skip(ROWS[goal.row].missing or f"{goal.row} is not in {FILE.name}")
    steps = GOLDEN[goal.row]
    assert steps["penalised"][goal.quantity] <= goal.most_times_plain * steps["plain"][goal.quantity]


@pytest.mark.long
def test_a_quarter_of_the_examples_for_the_perturbation_costs_a_quarter_of_the_flops():
    """At most 1.26 times plain training, at full size, and at most 2.005 times with all examples."""
    config = recipe.load(VIT_B)
    config = replace(config, gnp=replace(config.gnp, perturb_groups=1))
    quarter = replace(config, gnp=replace(config.gnp, ascent_fraction=0.25))
    dataset = absent_data.load(config.data, None)
    with jax.set_mesh(make_mesh(MeshConfig())):
        tasks = [make_task(each, dataset) for each in (config, quarter)]
        plain = flops_of(tasks[0], StepKind.PLAIN)
        all_examples, some = (flops_of(task, StepKind.FULL) for task in tasks)
    assert all_examples <= 2.005 * plain
    assert some <= 1.26 * plain
