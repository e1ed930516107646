"""Every recipe in configs/ has the fixed docstring, sane schedules, and a step that runs.

Recipes whose steps are one program (`small_networks.program`) are built once. As compilation takes most of the time,
the steps of most recipes run by hand (`pytest -m long`): the others are chosen so that nearly each value of an option
of a recipe occurs in one (`small_networks.covering`). Their networks are short ones with the same kinds of layers.
Three recipes are traced with their own batch.
"""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from small_networks import (
    CONFIGS,
    NAMES,
    by_program,
    covering,
    load,
    parts,
    program,
    short,
    shorten,
    shrunken,
    synthetic,
)

from gnp_scale import recipe
from gnp_scale.catalogue import recipes
from gnp_scale.catalogue.docstrings import parse
from gnp_scale.config import MeshConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import resolve
from gnp_scale.training import optim
from gnp_scale.training.penalty import make_gnp
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

LARGEST_GROUP = 512
"""Examples that share a perturbation; SAM's papers have 64 to 512, and a larger group needs a reason."""
each_recipe = pytest.mark.parametrize("name", NAMES, ids=short)


def describe(name):
    path, _, function = name.rpartition(":")
    return parse(recipe.functions(Path(path))[function].__doc__)


PROGRAMS = by_program(shrunken)
RUNS = covering(PROGRAMS)
USUAL_RUNS = 2
"""Of those that show all options; the others add little to these."""
AT_SCALE = ("scale.py:vit_22b", "imagenet_modern.py:convnext_t", "imagenet.py:resnet50")
"""A scanned ViT, a network of convolutions, and one with groups of examples that share a perturbation."""


@each_recipe
def test_the_docstring_has_the_fixed_form_and_the_numbers_of_the_recipe(name):
    config, fields = load(name), describe(name).fields
    command = shlex.split(fields["Command"])
    assert command[:3] == ["gnp-scale", "train", f"configs/{short(name)}"]
    recipe.override(config, command[3:])
    batch, groups = re.match(r"(\d+)\b(?: in (one|\d+) groups?\b)?", fields["Batch"]).groups()
    assert int(batch) == config.data.batch_size
    assert int((groups or "1").replace("one", "1")) == config.gnp.perturb_groups


@each_recipe
def test_large_groups_and_decay_of_all_parameters_are_explained(name):
    config, description = load(name), describe(name)
    if config.gnp.alpha != 0 and config.data.batch_size // config.gnp.perturb_groups > LARGEST_GROUP:
        assert re.search(r"groups?[:;,] \w+", description.fields["Batch"]), "the field Batch does not say why"
    if config.optim.decay_norm_and_bias:
        assert "as released" in description.what or "all parameters" in " ".join(description.fields.values())


@each_recipe
def test_the_learning_rate_and_the_penalty_are_those_of_a_whole_run(name):
    """It starts at 0 if there is a warm-up, reaches the peak, and ends where it should; late steps have the penalty."""
    config = load(name)
    section, num_steps = config.optim, config.train.num_steps
    rate = optim.learning_rate(section, num_steps)
    assert section.warmup_steps < num_steps / 2
    assert rate(0) == pytest.approx(0 if section.warmup_steps else section.learning_rate)
    assert rate(section.warmup_steps) == pytest.approx(section.learning_rate, rel=1e-6)
    if section.schedule in ("cosine", "linear"):
        assert rate(num_steps) == pytest.approx(section.end_learning_rate, abs=1e-9)
        assert rate(num_steps - 1) < 0.02 * section.learning_rate + section.end_learning_rate
    kinds = make_gnp(config).step_kinds(np.arange(num_steps))
    assert config.gnp.alpha == 0 or StepKind.FULL in kinds[-num_steps // 10 :]


def test_each_recipe_has_its_program_and_all_its_options_run():
    assert sorted(name for names in PROGRAMS.values() for name in names) == sorted(NAMES)
    shown = frozenset().union(*(parts(shrunken(load(name))) for name in RUNS))
    assert not {name: missing for name in NAMES if (missing := parts(shrunken(load(name))) - shown)}


def test_programs_differ_by_all_but_numbers():
    config = load(f"{CONFIGS}/cifar.py:wrn_28_10")
    same = replace(config, gnp=replace(config.gnp, r=0.3, alpha=0.2), train=replace(config.train, num_steps=9000))
    others = (
        replace(config, gnp=replace(config.gnp, blend="gsam")),
        replace(config, gnp=replace(config.gnp, alpha=1.0)),
        replace(config, gnp=replace(config.gnp, perturb_groups=2)),
        replace(config, optim=replace(config.optim, l2_in_loss=0.0)),
        replace(config, optim=replace(config.optim, clip_norm=None)),
        replace(config, data=replace(config.data, mixup=0.2)),
        replace(config, model=replace(config.model, num_bn_groups=2)),
    )
    assert program(same) == program(config)
    assert len({program(other) for other in (config, *others)}) == len(others) + 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [names[0] for names in PROGRAMS.values()], ids=short)
def test_each_program_has_its_network_optimizer_and_penalty(name, set_mesh, monkeypatch):
    """They fit each other, and the shapes of the state follow from them."""
    shorten(monkeypatch)
    set_mesh()
    config = shrunken(load(name))
    state = Task.of(config).abstract_state()
    assert jax.tree.leaves(state.params)
    assert (state.ema is not None) == (config.train.ema_decay is not None)


@pytest.mark.slow
def test_the_state_of_the_largest_network_is_sharded_on_8_devices(set_mesh):
    config = synthetic(load(f"{CONFIGS}/{AT_SCALE[0]}"))
    set_mesh(*sizes_of(config.mesh))
    state = Task.of(replace(config, model=replace(config.model, name="vit_22b"))).abstract_state()
    sizes = {leaf.size: np.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(state.params)}
    assert sizes[max(sizes)] == max(sizes) / 8


@pytest.mark.slow
@pytest.mark.parametrize("name", AT_SCALE)
def test_a_step_of_the_real_batch_is_traced_on_8_devices(name, set_mesh, monkeypatch):
    shorten(monkeypatch)
    config = synthetic(load(f"{CONFIGS}/{name}"))
    set_mesh(*sizes_of(config.mesh))
    task = Task.of(config)
    after, _ = make_train_step(task).trace(task.abstract_state(), task.abstract_batch(), kind=StepKind.FULL).out_info
    assert jax.tree.map(lambda leaf: leaf.shape, after) == jax.tree.map(lambda leaf: leaf.shape, task.abstract_state())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, id=short(name), marks=[] if name in RUNS[:USUAL_RUNS] else pytest.mark.long) for name in NAMES],
)
def test_two_steps_of_a_small_version_change_the_parameters(name, set_mesh, monkeypatch):
    shorten(monkeypatch)
    config = shrunken(load(name))
    set_mesh()
    task = Task.of(config)
    step, state = make_train_step(task), task.init_state()
    before = jax.device_get(state.params)
    kinds = task.gnp.step_kinds(np.arange(2))
    for kind, batch in zip(kinds, train_batches(task.dataset, config.data, 0, 0, 2), strict=True):
        state, metrics = step(state, batch, kind=StepKind(int(kind)))
        assert np.isfinite(metrics["train/loss"])
    changed = jax.tree.map(lambda old, new: not np.array_equal(old, new), before, jax.device_get(state.params))
    assert any(jax.tree.leaves(changed))


def sizes_of(mesh: MeshConfig):
    shape = resolve(mesh, 8)
    return shape.replica, shape.fsdp, shape.tensor


def test_the_page_of_recipes_is_that_of_the_docstrings():
    page = recipes.as_markdown(recipes.find(CONFIGS, Path("configs")))
    written = (CONFIGS / "README.md").read_text()
    assert page == written, "write it again: gnp-scale recipes --format markdown > configs/README.md"
