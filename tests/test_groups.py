"""Groups with their own perturbation: those that do not fit the devices are refused, and advice says what is better."""

import contextlib
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.config import Config, ConfigError, DataConfig, GnpConfig, ModelConfig, TrainConfig
from gnp_scale.gnp import Gnp, StepKind, combine
from gnp_scale.mesh import FSDP, REPLICA, P
from gnp_scale.training.groups import check_parts, group_advice, mesh_advice, num_parts
from gnp_scale.training.penalty import make_gnp
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_STEPS = 20
STEPS = np.arange(NUM_STEPS)


def advised(num_devices, kinds=(StepKind.FULL,), bn_group_size=1, batch_size=4096, accumulate_steps=1, **values):
    """The advice on `num_devices` devices; kinds are those of a run if they are None."""
    shape = {"replica": 1, "fsdp": num_devices, "tensor": 1}
    config = Config(
        data=DataConfig(batch_size=batch_size),
        gnp=GnpConfig(**values),
        train=TrainConfig(num_steps=NUM_STEPS, accumulate_steps=accumulate_steps),
    )
    if kinds is None:
        kinds = make_gnp(config).step_kinds(STEPS)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))):
        return group_advice(config, kinds, bn_group_size)


QUIET = {
    "plain": {"alpha": 0.0},
    "closed gate": {"gate": "bernoulli", "gate_probability": 0.0},
    "small batch": {"batch_size": 512},
    "groups": {"perturb_groups": 8},
    "first part of a batch": {"ascent_fraction": 0.125},
    "first part of groups": {"perturb_groups": 2, "ascent_fraction": 0.25},
    "momentum, which has no groups": {"direction": "momentum", "alpha": 1.0},
    "reused, which has one group": {"direction": "reused"},
    "norm gate, which judges the whole batch": {"gate": "norm"},
}


@pytest.mark.parametrize("name", QUIET)
def test_a_run_without_large_groups_has_no_advice(name):
    assert advised(8, kinds=None, **QUIET[name]) is None


LOUD = {
    "one group": ({}, "to 4096 examples (gnp.perturb_groups 1)", "--gnp.perturb-groups 32 makes"),
    "one too many": ({"batch_size": 520}, "to 520 examples", "--gnp.perturb-groups 5 makes"),
    "too few groups": ({"perturb_groups": 4}, "to 1024 examples (gnp.perturb_groups 4)", "-groups 32 makes"),
    "part of groups": ({"ascent_fraction": 0.25}, "to 1024 examples", "--gnp.perturb-groups 8 makes"),
    "some steps": ({"gate": "every", "gate_every": 5}, "to 4096 examples", "--gnp.perturb-groups 32 makes"),
    "gsam with alpha 0 is SAM": ({"blend": "gsam", "alpha": 0.0}, "to 4096 examples", "-groups 32 makes"),
    "microbatches that groups must contain": (
        {"batch_size": 4800, "accumulate_steps": 3},
        "to 4800 examples",
        "--gnp.perturb-groups 60 makes",
    ),
    "batch statistics": ({"bn_group_size": 4096}, "to 4096", "-groups 32 --model.num-bn-groups 32 makes"),
    "batch statistics that fit": ({"bn_group_size": 64}, "to 4096", "--gnp.perturb-groups 32 makes"),
}


@pytest.mark.parametrize("name", LOUD)
def test_large_groups_are_told_with_what_makes_them_smaller(name):
    values, size, flags = LOUD[name]
    advice = advised(8, kinds=None, **values)
    assert size in advice
    assert flags in advice
    assert "\n" not in advice


def test_advice_on_groups_fits_the_mesh():
    """Each group lies on all devices, so 512 of them allow 8 groups of 512 examples, and 4096 of them no second one."""
    assert "--gnp.perturb-groups 8 makes" in advised(512)
    assert "a larger --mesh.replica, and the same --gnp.perturb-groups makes" in advised(4096)
    # A half of each of 8 groups has 256 examples, which 512 devices cannot share.
    assert "--gnp.perturb-groups 4 makes" in advised(512, ascent_fraction=0.5)


def test_batch_statistics_of_one_device_fit_into_the_share_of_the_first_pass():
    config = Config(
        DataConfig(batch_size=64), gnp=GnpConfig(ascent_fraction=0.25), train=TrainConfig(accumulate_steps=2)
    )
    assert num_parts(config) == 8


def advised_mesh(shape, kind=StepKind.FULL, num_groups=4):
    axes = dict(zip(("replica", "fsdp", "tensor"), shape, strict=True))
    config = Config(data=DataConfig(batch_size=256), gnp=GnpConfig(perturb_groups=num_groups))
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh(tuple(axes.values()), tuple(axes))):
        return mesh_advice(config, {kind})


@pytest.mark.parametrize(
    ("shape", "flags"),
    [
        ((1, 4, 1), "--mesh.replica 4 --mesh.fsdp 1 "),
        ((1, 16, 1), "--mesh.replica 4 --mesh.fsdp 4 "),
        ((2, 8, 1), "--mesh.replica 4 --mesh.fsdp 4 "),
        ((8, 1, 1), "--mesh.replica 4 --mesh.fsdp 2 "),
        ((1, 8, 2), "--mesh.replica 4 --mesh.fsdp 2 "),
    ],
)
def test_groups_that_could_be_replicas_are_told_with_their_mesh(shape, flags):
    assert f"with {flags}they are computed side by side" in advised_mesh(shape)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_groups_that_do_not_divide_over_the_devices_are_one_line(fraction, set_mesh):
    """In a plan as in training, and not in steps without the penalty."""
    set_mesh(fsdp=4)
    data = DataConfig("digits", batch_size=64, eval_batch_size=64)
    model = ModelConfig("vit_mu", patch_size=4, width=32, depth=1, num_heads=2)
    gnp = GnpConfig(perturb_groups=32, ascent_fraction=fraction)
    task = Task.of(Config(data=data, model=model, gnp=gnp))
    step, arguments = make_train_step(task), (task.abstract_state(), task.abstract_batch())
    step.trace(*arguments, kind=StepKind.PLAIN)
    with pytest.raises(ConfigError, match=r"2 examples of a group do not divide over 4 shards of the batch: make"):
        step.trace(*arguments, kind=StepKind.FULL)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (4, 1, 1), (1, 8, 1)], ids=str)
def test_a_step_is_refused_exactly_where_its_examples_do_not_divide_over_the_devices(shape, set_mesh):
    """Plain and penalised steps of all sizes are traced if and only if they are not refused."""
    set_mesh(*shape)
    batch = jax.device_put(np.zeros((48, 3), np.float32), P((REPLICA, FSDP)))
    for parts, groups, share in itertools.product((1, 2, 3, 6, 12), (1, 2, 4, 12), (1.0, 0.5, 0.75, 1 / 3)):
        if parts % groups and groups % parts:
            continue
        section = GnpConfig(perturb_groups=groups, ascent_fraction=share)
        config = Config(DataConfig(batch_size=48), gnp=section, train=TrainConfig(accumulate_steps=parts))
        penalty = Gnp(r=0.1, alpha=0.5, perturb_groups=groups, ascent_fraction=share)
        axis = REPLICA if groups == shape[0] > 1 else None
        step = combine(lambda w, x: jnp.mean((x @ w) ** 2), penalty, num_accumulated=parts, group_axis=axis)
        for kind in (StepKind.PLAIN, StepKind.FULL):
            can_be_traced = is_refused = False
            with contextlib.suppress(ValueError):
                jax.eval_shape(partial(step, kind=kind), jnp.zeros(3), batch)
                can_be_traced = True
            try:
                check_parts(config, has_two_passes=kind == StepKind.FULL)
            except ConfigError:
                is_refused = True
            assert is_refused != can_be_traced, (parts, groups, share, kind)


@pytest.mark.parametrize(
    ("shape", "kind", "num_groups"),
    [
        ((4, 4, 1), StepKind.FULL, 4),
        ((1, 1, 1), StepKind.FULL, 4),
        ((1, 6, 1), StepKind.FULL, 4),
        ((1, 2, 2), StepKind.FULL, 4),
        ((1, 4, 1), StepKind.FULL, 1),
        ((1, 4, 1), StepKind.PLAIN, 4),
    ],
    ids=["they are", "one device", "other devices", "tensor", "one group", "no penalty"],
)
def test_there_is_no_advice_on_the_mesh_if_none_is_better(shape, kind, num_groups):
    assert advised_mesh(shape, kind, num_groups) is None
