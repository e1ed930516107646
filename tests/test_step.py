"""The state of training on every mesh: sharded from the start, with fewer bytes per device, and its types are kept."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mlp import assert_trees_equal

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import AXES, current_axis_size
from gnp_scale.models import registry, resnet
from gnp_scale.training.setup import Task
from gnp_scale.training.state import initial_key
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

MESHES = [(1, 1, 1), (1, 8, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2)]
VIT = Config(
    data=DataConfig(name="synthetic", batch_size=64, eval_batch_size=64, synthetic_num_examples=64),
    model=ModelConfig(name="vit_ti", patch_size=8, depth=2, num_heads=4, width=128),
    optim=OptimConfig(name="adamw", learning_rate=1e-3),
    train=TrainConfig(ema_decay=0.9),
)
CONFIGS = {
    "vit": VIT,
    "vit, scanned": dataclasses.replace(VIT, model=dataclasses.replace(VIT.model, scan_layers=True)),
    "resnet": dataclasses.replace(VIT, model=ModelConfig(name="resnet18", stem="cifar"), optim=OptimConfig()),
    "kept direction": dataclasses.replace(VIT, gnp=GnpConfig(direction="reused")),
    "stale": dataclasses.replace(VIT, gnp=GnpConfig(direction="stale", alpha=1.0)),
    "average, groups": dataclasses.replace(VIT, gnp=GnpConfig(direction="friendly", perturb_groups=2)),
    "layerwise": dataclasses.replace(VIT, gnp=GnpConfig(metric="layerwise")),
    "norm gate": dataclasses.replace(VIT, gnp=GnpConfig(gate="norm", radius="loss")),
    "decoupled": dataclasses.replace(VIT, gnp=GnpConfig(blend="decoupled", alpha=1.5)),
    "groups": dataclasses.replace(VIT, gnp=GnpConfig(perturb_groups=2), train=TrainConfig(accumulate_steps=4)),
}


# The meshes for the two families of networks, and the one with all axes for what the method adds.
CASES = [(name, mesh) for name in CONFIGS for mesh in (MESHES if name in ("vit", "resnet") else MESHES[-1:])]


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """Two stages have every kind of layer."""
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (resnet.BasicBlock, (1, 1)))


@pytest.mark.parametrize(("name", "mesh"), CASES, ids=str)
def test_a_step_keeps_shapes_types_and_shardings(name, mesh, set_mesh):
    set_mesh(*mesh)
    task = Task.of(CONFIGS[name])
    state = task.abstract_state()
    train_step = make_train_step(task)
    for kind in (StepKind.PLAIN, StepKind.FULL):
        traced = train_step.trace(state, task.abstract_batch(), kind=kind)
        after, metrics = traced.out_info
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
            assert (old.shape, old.dtype) == (new.shape, new.dtype)
            assert tuple(old.sharding.spec) == tuple(new.sharding.spec if new.sharding else ())
        assert all(value.shape == () for value in jax.tree.leaves(metrics))


@pytest.mark.parametrize("mesh", [(1, 8, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2)], ids=str)
def test_the_bytes_of_the_state_are_divided_among_the_devices(mesh, set_mesh):
    """All kernels, their moments, their average and the kept direction; vectors and a head of ten classes are small and
    replicated.
    """
    set_mesh(*mesh)
    state = Task.of(CONFIGS["kept direction"]).init_state()
    assert all(jax.tree.leaves(part) for part in (state.ema, state.opt_state, state.kept))
    num_shards = current_axis_size(AXES[1:])
    kernels = [x for path, x in jax.tree.leaves_with_path(state) if "kernel" in jax.tree_util.keystr(path)]
    total = sum(x.nbytes for x in kernels)
    on_first = sum(x.addressable_data(0).nbytes for x in kernels)
    assert total / num_shards <= on_first <= 1.05 * total / num_shards


@pytest.mark.parametrize("name", ["vit_mu", "resnet18"])
def test_no_key_of_the_initialisation_is_one_of_a_step_or_an_example(name, monkeypatch):
    """`split` gives the same keys as folding in 0, 1, ..., so two uses of one root would draw the same numbers."""
    root, of_init, split = jax.random.key(3), [initial_key(3)], jax.random.split

    def recorded(key, num=2):
        keys = split(key, num)
        of_init.append(keys)
        return keys

    monkeypatch.setattr(jax.random, "split", recorded)
    registry.create(ModelConfig(name), (16, 16, 3), num_classes=10, batch_size=8).init(initial_key(3))
    fold_in_each = jax.vmap(jax.random.fold_in, (None, 0))
    of_steps = fold_in_each(root, jnp.arange(100))
    of_examples = jax.vmap(fold_in_each, (0, None))(of_steps, jnp.arange(100))
    assert len(words(of_init)) > 5
    assert words(of_init).isdisjoint(words([root, of_steps, of_examples]))


def words(keys):
    """The words of all keys in these arrays of keys."""
    return {tuple(word) for array in keys for word in jax.random.key_data(array).reshape(-1, 2).tolist()}


def test_the_state_begins_with_the_parameters_of_the_initial_key(set_mesh):
    set_mesh()
    task = Task.of(VIT)
    params, _ = jax.jit(task.model.init)(initial_key(VIT.train.seed))
    assert_trees_equal(task.init_state().params, params)


def test_the_penalty_and_the_average_follow_the_updates_as_the_learning_rate_does(set_mesh):
    """After skipped steps there are fewer updates than steps."""
    set_mesh()
    schedules = {"r_schedule": "learning_rate", "alpha_schedule": "learning_rate"}
    config = dataclasses.replace(
        VIT,
        data=DataConfig(batch_size=8, eval_batch_size=8),
        model=ModelConfig("vit_mu", patch_size=4, depth=1),
        gnp=GnpConfig(r=0.1, alpha=0.5, **schedules),
        optim=OptimConfig(learning_rate=0.2, warmup_steps=10),
        train=TrainConfig(num_steps=50, ema_decay=0.9999),
    )
    task = Task.of(config)
    state, train_step = task.init_state(), make_train_step(task)
    for number, batch in enumerate(train_batches(task.dataset, config.data, seed=0, start_step=0, num_steps=3)):
        state = dataclasses.replace(state, step=state.step + 5)
        old = jax.tree.map(np.asarray, state.ema)
        state, metrics = train_step(state, batch, kind=StepKind.FULL)
        share = number / 10
        got = [metrics[name] for name in ("optim/learning_rate", "gnp/r", "gnp/alpha")]
        np.testing.assert_allclose(got, [0.2 * share, 0.1 * share, 0.5 * share], rtol=1e-6)
        new_share, new = 9 / (10 + number), (state.params, state.batch_stats)
        expected = jax.tree.map(lambda new, old, x=new_share: x * new + (1 - x) * old, new, old)
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), state.ema, expected)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_groups_on_replicas_take_schedules_and_batch_statistics(name, set_mesh):
    """Further inputs of the groups enter the replicas in the same way as the parameters."""
    set_mesh(2, 2, 2)
    gnp = GnpConfig(perturb_groups=2, r_schedule="warmup", alpha_schedule="learning_rate", warmup_steps=10)
    model = dataclasses.replace(CONFIGS[name].model, num_bn_groups=2 if name == "resnet" else 1)
    task = Task.of(dataclasses.replace(CONFIGS[name], gnp=gnp, model=model))
    traced = make_train_step(task).trace(task.abstract_state(), task.abstract_batch(), kind=StepKind.FULL)
    assert jax.tree.structure(traced.out_info[0]) == jax.tree.structure(task.abstract_state())


@pytest.mark.parametrize("mesh", [(1, 1, 1), (1, 1, 2)], ids=str)
@pytest.mark.parametrize(
    "parts",
    [{"gnp": GnpConfig(perturb_groups=4)}, {"train": TrainConfig(accumulate_steps=4)}],
    ids=["groups", "microbatches"],
)
def test_a_part_of_a_batch_may_be_one_example(parts, mesh, set_mesh):
    """Its keys too stay sharded over axes of one device, which JAX forgets where it takes one of them."""
    set_mesh(*mesh)
    config = dataclasses.replace(VIT, data=dataclasses.replace(VIT.data, batch_size=4), **parts)
    task = Task.of(config)
    make_train_step(task).trace(task.abstract_state(), task.abstract_batch(), kind=StepKind.FULL)
