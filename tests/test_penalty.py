"""The section `gnp` of a configuration becomes the `Gnp` that it describes; incompatible settings give one line."""

import jax
import numpy as np
import optax
import pytest

from gnp_scale.config import Config, ConfigError, GnpConfig, OptimConfig, TrainConfig
from gnp_scale.gnp import Gnp
from gnp_scale.training import optim
from gnp_scale.training.penalty import MOMENTUM, make_gnp

NUM_STEPS = 20
STEPS = np.arange(NUM_STEPS)


def penalty(num_steps=NUM_STEPS, optimizer=None, seed=0, **values):
    section = GnpConfig(**values)
    return make_gnp(
        Config(gnp=section, train=TrainConfig(num_steps=num_steps, seed=seed), optim=optimizer or OptimConfig())
    )


FIELDS = {
    "nothing": ({}, Gnp(r=0.05, alpha=0.8)),
    "r": ({"r": 0.1}, Gnp(r=0.1, alpha=0.8)),
    "alpha": ({"alpha": 0.3}, Gnp(alpha=0.3)),
    "lam": ({"alpha": None, "lam": 0.02}, Gnp(lam=0.02)),
    "blend": ({"blend": "gsam"}, Gnp(alpha=0.8, blend="gsam")),
    "direction": ({"direction": "momentum", "alpha": 1.0}, Gnp(alpha=1.0, direction="momentum")),
    "direction with adamw": (
        {"direction": "momentum", "alpha": 1.0, "optimizer": OptimConfig(name="adamw", momentum=0.0)},
        Gnp(alpha=1.0, direction="momentum"),
    ),
    "reuse_every": (
        {"direction": "reused", "reuse_every": 3},
        Gnp(alpha=0.8, direction="reused", reuse_every=3),
    ),
    "metric": ({"metric": "adaptive"}, Gnp(alpha=0.8, metric="adaptive")),
    "perturb_groups": ({"perturb_groups": 4}, Gnp(alpha=0.8, perturb_groups=4)),
    "ascent_fraction": ({"ascent_fraction": 0.25}, Gnp(alpha=0.8, ascent_fraction=0.25)),
}


@pytest.mark.parametrize(("values", "expected"), FIELDS.values(), ids=FIELDS.keys())
def test_each_field_reaches_the_penalty(values, expected):
    assert penalty(**values) == expected


PATHS = ["blocks/00/norm1/scale", "blocks/00/norm1/bias", "blocks/00/mlp/in_proj/kernel", "blocks/00/mlp/in_proj/bias"]
MASKS = {"norm": [True, True, False, False], "kernels": [False, False, True, False]}


@pytest.mark.parametrize("name", MASKS)
def test_mask_chooses_by_the_names_of_the_models(name):
    """SAM-ON perturbs scales and biases of norm layers, and nothing else."""
    mask = penalty(perturbed=name).mask
    assert [mask(path) for path in PATHS] == MASKS[name]


GATES = {
    "every": ({"gate_every": 5}, [0, 5, 10, 15]),
    "window": ({"gate_start": 3, "gate_stop": 6}, [3, 4, 5]),
    "window to the end": ({"gate_start": 17}, [17, 18, 19]),
    "bernoulli": ({"gate_probability": 1.0}, list(STEPS)),
}


@pytest.mark.parametrize("name", GATES)
def test_gate_opens_where_it_is_told(name):
    values, expected = GATES[name]
    on = penalty(gate=name.split()[0], **values).is_on(STEPS)
    assert np.flatnonzero(on).tolist() == expected


def test_random_gate_follows_the_seed_of_the_run():
    first, second, again = (penalty(gate="bernoulli", seed=seed).is_on(STEPS).tolist() for seed in (1, 2, 1))
    assert first == again != second
    assert 0 < sum(first) < NUM_STEPS


OPTIMIZER = OptimConfig(learning_rate=0.3, warmup_steps=5)
SCHEDULES = {
    "warmup": lambda step: min(step / 8, 1.0),
    "cosine": lambda step: (1 + np.cos(np.pi * step / NUM_STEPS)) / 2,
    "learning_rate": lambda step: float(optim.learning_rate(OPTIMIZER, NUM_STEPS)(step)) / 0.3,
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("field", ["r", "alpha", "lam"])
def test_schedule_scales_the_value_of_its_field(field, name):
    """r, alpha or lambda is its value times the schedule; the other is constant, but lam changes alpha = lam / r."""
    values = {"r": 0.2, "alpha": 0.5} if field != "lam" else {"r": 0.2, "alpha": None, "lam": 0.1}
    values[f"{'r' if field == 'r' else 'alpha'}_schedule"] = name
    values["warmup_steps"] = 8 if name == "warmup" else 0
    gnp = penalty(optimizer=OPTIMIZER, **values)
    shares = np.array([SCHEDULES[name](step) for step in STEPS])
    for step, share in zip(STEPS, shares, strict=True):
        expected = (0.2 * share, 0.5) if field == "r" else (0.2, 0.5 * share)
        np.testing.assert_allclose(gnp.values(step), expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gnp.is_on(STEPS), shares > 0)


@pytest.mark.parametrize("schedule", ["warmup", "cosine", "learning_rate"])
def test_a_scheduled_zero_is_plain_training(schedule):
    """0 times a schedule is known to be off before anything is traced, so it costs one pass."""
    assert penalty(alpha=0.0, alpha_schedule=schedule, warmup_steps=8 if schedule == "warmup" else 0).is_plain


WRONG = {
    "momentum with lars": (
        {"direction": "momentum", "alpha": 1.0, "optimizer": OptimConfig(name="lars")},
        'gnp.direction "momentum" needs an optimizer with momentum: optim.name is lars',
    ),
    "momentum without momentum": (
        {"direction": "momentum", "alpha": 1.0, "optimizer": OptimConfig(momentum=0.0, nesterov=False)},
        "optim.name is sgd with optim.momentum 0.0; choose sgd with momentum, or one of adamw, lamb, lion",
    ),
    "momentum with alpha": ({"direction": "momentum"}, "has no g1 to blend with. Got alpha=0.8"),
    "momentum with groups": (
        {"direction": "momentum", "alpha": 1.0, "perturb_groups": 2},
        'needs blend="paper", perturb_groups=1 and ascent_fraction=1. Got perturb_groups=2',
    ),
    "reused with gsam": ({"direction": "reused", "blend": "gsam"}, "Got blend='gsam'"),
    "alpha above 1": ({"alpha": 1.5}, 'alpha may exceed 1 only with blend="decoupled". Got 1.5'),
    "lam above r": ({"alpha": None, "lam": 1.0}, 'only with blend="decoupled". Got 20.0 (lam=1.0 / r=0.05)'),
    "lam stays as r falls": ({"alpha": None, "lam": 0.02, "r_schedule": "cosine"}, "(lam / r) at step 12."),
    "lam stays as r rises": (
        {"alpha": None, "lam": 0.02, "r_schedule": "warmup", "warmup_steps": 10},
        "alpha=3.99",
    ),
    "r is NaN": ({"r": float("nan")}, "gnp.r is nan: it must be a finite number"),
    "r is infinite": ({"r": float("inf")}, "gnp.r is inf"),
    "alpha is NaN": ({"alpha": float("nan")}, "gnp.alpha is nan"),
    "no group": ({"perturb_groups": 0}, "gnp.perturb_groups is 0: it must be at least 1"),
    "negative warm-up": ({"warmup_steps": -1}, "gnp.warmup_steps is -1: it must not be negative"),
    "negative start": ({"gate": "window", "gate_start": -1}, "gnp.gate_start is -1"),
    "probability is NaN": ({"gate": "bernoulli", "gate_probability": float("nan")}, "gnp.gate_probability is nan"),
    "negative alpha": ({"alpha": -0.1}, "gnp.alpha is -0.1: it must not be negative"),
    "no examples": ({"ascent_fraction": 0.0}, "gnp.ascent_fraction is 0.0: it must be in [0.001, 1]"),
    "reuse never": ({"direction": "reused", "reuse_every": 0}, "gnp.reuse_every is 0: it must be at least 1"),
    "every 0": ({"gate": "every", "gate_every": 0}, "gnp.gate_every is 0: it must be at least 1"),
    "empty window": (
        {"gate": "window", "gate_start": 5, "gate_stop": 5},
        "gnp.gate_stop is 5 with gnp.gate_start 5: it must be above that",
    ),
    "window after the end": (
        {"gate": "window", "gate_start": 30},
        "train.num_steps 20 is too small for gnp.gate_start 30",
    ),
    "impossible probability": (
        {"gate": "bernoulli", "gate_probability": 1.5},
        "gnp.gate_probability is 1.5: it must be in [0, 1]",
    ),
}


@pytest.mark.parametrize(("values", "part"), WRONG.values(), ids=WRONG.keys())
def test_settings_that_do_not_go_together_are_one_line(values, part):
    with pytest.raises(ConfigError) as error:
        penalty(**values)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", MOMENTUM)
def test_momentum_is_found_and_points_along_the_gradient(name):
    """The momentum that the table names is a tree like the parameters, with the sign of a gradient."""
    optimizer = optim.make_optimizer(OptimConfig(name=name), NUM_STEPS)
    params = {"kernel": jax.numpy.ones((2, 2)), "bias": jax.numpy.ones(2)}
    _, state = optimizer.update(jax.tree.map(lambda w: 0.5 * w, params), optimizer.init(params), params)
    momentum = optax.tree.get(state, MOMENTUM[name])
    assert jax.tree.structure(momentum) == jax.tree.structure(params)
    assert all((leaf > 0).all() for leaf in jax.tree.leaves(momentum))


VALUES = [-1, -1e-9, 0, 1e-4, 0.001, 0.5, 1, 2, 2.5, float("inf"), float("nan")]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ["r", "alpha", "lam", "reuse_every", "perturb_groups", "ascent_fraction"])
def test_the_section_and_the_method_refuse_the_same_values(name, value):
    """A configuration is checked before JAX is imported, and `Gnp` by itself: both checks must agree."""
    others = {} if name in ("alpha", "lam") else {"alpha": 1.0}
    # Of values that another setting makes right or wrong, the section leaves the check to the method.
    others |= {"reuse_every": {"direction": "reused"}, "alpha": {"blend": "decoupled"}}.get(name, {})
    others |= {"blend": "decoupled"} if name == "lam" else {}
    assert is_refused(GnpConfig, **{"alpha": None} | others | {name: value}) == is_refused(
        Gnp, **others, **{name: value}
    )


def is_refused(section, **values):
    try:
        section(**values)
    except ValueError:
        return True
    return False
