"""The section `gnp` of a configuration becomes the `Gnp` that it describes; incompatible settings give one line."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from gnp_scale.config import Config, ConfigError, GnpConfig, OptimConfig, TrainConfig
from gnp_scale.gnp import Gnp
from gnp_scale.training import optim
from gnp_scale.training.leaves import layer_axes
from gnp_scale.training.penalty import MOMENTUM, make_gnp, warm_up_advice

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_STEPS = 20
STEPS = np.arange(NUM_STEPS)


def config(num_steps=NUM_STEPS, optimizer=None, seed=0, **values):
    train = TrainConfig(num_steps=num_steps, seed=seed)
    return Config(gnp=GnpConfig(**values), train=train, optim=optimizer or OptimConfig())


def penalty(**values):
    return make_gnp(config(**values))


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
    "stale": ({"direction": "stale", "alpha": 1.0}, Gnp(alpha=1.0, direction="stale")),
    "friendly": (
        {"direction": "friendly", "gradient_weight": 0.5, "average_weight": 2.0, "average_decay": 0.6},
        Gnp(alpha=0.8, direction="friendly", gradient_weight=0.5, average_weight=2.0, average_decay=0.6),
    ),
    "radius": ({"radius": "loss", "max_r": 0.5}, Gnp(alpha=0.8, radius="loss", max_r=0.5)),
    "radius without a limit": ({"radius": "loss"}, Gnp(alpha=0.8, radius="loss")),
    "not normalised": ({"radius": "gradient"}, Gnp(alpha=0.8, radius="gradient")),
    "layerwise": ({"metric": "layerwise"}, Gnp(alpha=0.8, metric="layerwise")),
    "perturb_groups": ({"perturb_groups": 4}, Gnp(alpha=0.8, perturb_groups=4)),
    "ascent_fraction": ({"ascent_fraction": 0.25}, Gnp(alpha=0.8, ascent_fraction=0.25)),
}


@pytest.mark.parametrize(("values", "expected"), FIELDS.values(), ids=FIELDS.keys())
def test_each_field_reaches_the_penalty(values, expected):
    assert penalty(**values) == dataclasses.replace(expected, axes=layer_axes)


PATHS = ["blocks/00/norm1/scale", "blocks/00/norm1/bias", "blocks/00/mlp/in_proj/kernel", "blocks/00/mlp/in_proj/bias"]
MASKS = {"norm": [True, True, False, False], "kernels": [False, False, True, False]}


@pytest.mark.parametrize("name", MASKS)
def test_mask_chooses_by_the_names_of_the_models(name):
    """SAM-ON perturbs scales and biases of norm layers, and nothing else."""
    mask = penalty(perturbed=name).mask
    assert [mask(path) for path in PATHS] == MASKS[name]


def test_frozen_parameters_need_no_mask_where_all_are_perturbed():
    """They have no gradient. So the perturbation is along the gradient, and the curvature is known."""
    assert penalty(optimizer=OptimConfig(frozen=("*/norm?/*",))).mask is None


@pytest.mark.parametrize(("name", "expected"), MASKS.items())
def test_frozen_parameters_are_not_perturbed(name, expected):
    """If all that `gnp.perturbed` names is frozen, as here with "norm", the mask is empty, and tracing refuses it."""
    mask = penalty(perturbed=name, optimizer=OptimConfig(frozen=("*/norm?/*",))).mask
    assert [mask(path) for path in PATHS] == [
        is_chosen and "norm" not in path for path, is_chosen in zip(PATHS, expected, strict=True)
    ]


GATES = {
    "every": ({"gate_every": 5}, [0, 5, 10, 15]),
    "window": ({"gate_start": 3, "gate_stop": 6}, [3, 4, 5]),
    "window to the end": ({"gate_start": 17}, [17, 18, 19]),
    "tail": ({"gate_tail": 0.2}, [16, 17, 18, 19]),
    "tail of less than a step": ({"gate_tail": 0.001}, [19]),
    "tail of all": ({"gate_tail": 1.0}, list(STEPS)),
    "decay from the warm-up": ({"optimizer": OptimConfig(schedule="cosine", warmup_steps=15)}, [15, 16, 17, 18, 19]),
    "decay from the first boundary": (
        {"optimizer": OptimConfig(schedule="step", step_boundaries=(0.7, 0.9))},
        list(range(13, NUM_STEPS)),
    ),
    "bernoulli": ({"gate_probability": 1.0}, list(STEPS)),
}


@pytest.mark.parametrize("name", GATES)
def test_gate_opens_where_it_is_told(name):
    values, expected = GATES[name]
    on = penalty(gate=name.split()[0], **values).is_on(STEPS)
    assert np.flatnonzero(on).tolist() == expected


@pytest.mark.parametrize("gate", [{"gate": "tail", "gate_tail": 0.5}, {"gate": "window", "gate_start": 10}])
def test_radius_grows_after_the_gate_opens(gate):
    """The first step with the penalty has some of it; skipped steps, which are no updates, never make r negative."""
    gnp = penalty(r=0.2, gate_ramp_steps=4, **gate)
    r, _ = gnp.values(np.arange(8, 16))
    np.testing.assert_allclose(r, 0.2 * np.array([0.25, 0.25, 0.25, 0.5, 0.75, 1, 1, 1]), rtol=1e-6)
    assert np.flatnonzero(gnp.is_on(STEPS)).tolist() == list(range(10, NUM_STEPS))


def test_radius_that_grows_keeps_its_schedule():
    gnp = penalty(r=0.2, r_schedule="cosine", gate="tail", gate_ramp_steps=4)
    np.testing.assert_allclose(gnp.values(11)[0], 0.2 * 0.5 * (1 + np.cos(np.pi * 11 / NUM_STEPS)) / 2, rtol=1e-5)


@pytest.mark.parametrize("warmup_steps", [9, 10, 11])
@pytest.mark.parametrize("field", ["r", "alpha"])
@pytest.mark.parametrize("gate", [{"gate": "tail"}, {"gate": "window", "gate_start": 10}, {"gate": "always"}])
def test_warm_up_that_ends_before_the_gate_opens_is_told(gate, field, warmup_steps):
    """And no other: one that is still growing on a step with the penalty has an effect."""
    values = {"r": 0.2, "alpha": 0.5, f"{field}_schedule": "warmup", "warmup_steps": warmup_steps, **gate}
    gnp = penalty(**values)
    penalised = [np.broadcast_to(value, NUM_STEPS)[gnp.is_on(STEPS)] for value in gnp.values(STEPS)]
    advice = warm_up_advice(config(**values))
    if any(np.ptp(value) for value in penalised):
        assert advice is None
    else:
        assert f"gnp.warmup_steps {warmup_steps}, which counts from step 0" in advice


def test_threshold_of_the_norm_gate_falls_over_the_run():
    gate = penalty(gate="norm", gate_threshold=2.0, gate_end_threshold=-1.0, gate_decay=0.8).norm_gate
    np.testing.assert_allclose([gate.at(step) for step in (0, 10, NUM_STEPS)], [2.0, 0.5, -1.0], rtol=1e-6)
    assert gate.decay == 0.8


LAYERS = {
    ("blocks/00/mlp/in_proj/kernel", (32, 128)): ((0,), (1,)),
    ("blocks/00/mlp/in_proj/bias", (128,)): ((), (0,)),
    ("blocks/attention/qkv/kernel", (12, 32, 3, 4, 8)): ((1,), (3, 4)),
    ("blocks/attention/out_proj/kernel", (12, 4, 8, 32)): ((1, 2), (3,)),
    ("blocks/norm1/scale", (12, 32)): ((), (1,)),
    ("embed/kernel", (4, 4, 3, 32)): ((0, 1, 2), (3,)),
    ("position", (1, 16, 32)): ((), (0, 1, 2)),
}


@pytest.mark.parametrize(("layer", "expected"), LAYERS.items(), ids=lambda value: str(value[0]))
def test_layers_have_the_inputs_and_outputs_of_the_networks(layer, expected):
    """Stacked blocks, and queries, keys and values, are layers of their own."""
    assert penalty(metric="layerwise").axes(*layer) == expected


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


def test_radius_of_gsam_falls_with_the_learning_rate_to_its_end():
    """Algorithm 1 of arXiv 2203.08065: rho_min + (rho_max - rho_min) (lr - lr_min) / (lr_max - lr_min).

    While a warm-up is below lr_min the radius stays at rho_min: the formula would go below it, and below 0 at 0.
    """
    optimizer = OptimConfig(learning_rate=0.3, end_learning_rate=0.03, schedule="linear", warmup_steps=5)
    gnp = penalty(optimizer=optimizer, r=0.6, end_r=0.2, alpha=0.4, blend="gsam", r_schedule="learning_rate")
    rates = np.array([0.3 * step / 5 if step < 5 else 0.3 - 0.27 * (step - 5) / 15 for step in range(NUM_STEPS + 1)])
    expected = 0.2 + 0.4 * np.maximum(rates - 0.03, 0) / 0.27
    r, alpha = gnp.values(np.arange(NUM_STEPS + 1))
    np.testing.assert_allclose(r, expected, rtol=1e-5)
    np.testing.assert_allclose(np.asarray(r)[[0, 5, NUM_STEPS]], [0.2, 0.6, 0.2], rtol=1e-6)
    assert alpha == 0.4
    assert gnp.is_on(STEPS).all()


def test_radius_of_gsam_that_ends_at_0_is_off_until_the_warm_up_reaches_the_last_rate():
    optimizer = OptimConfig(learning_rate=0.3, end_learning_rate=0.12, schedule="linear", warmup_steps=6)
    gnp = penalty(optimizer=optimizer, r=0.6, end_r=0.0, blend="gsam", r_schedule="learning_rate")
    assert np.flatnonzero(~gnp.is_on(STEPS)).tolist() == [0, 1, 2]


def test_radius_of_0_is_plain_training_with_an_end_of_0_only():
    """The number 0 costs one pass; a radius that rises to its end would not."""
    with pytest.raises(ConfigError, match=r"gnp\.end_r is 0\.1 with gnp\.r 0\.0"):
        penalty(r=0.0, end_r=0.1, r_schedule="learning_rate")
    assert penalty(r=0.0, end_r=0.0, r_schedule="learning_rate").is_plain


@pytest.mark.parametrize("schedule", ["warmup", "cosine", "learning_rate"])
def test_a_scheduled_zero_is_plain_training(schedule):
    """0 times a schedule is known to be off before anything is traced, so it costs one pass."""
    assert penalty(alpha=0.0, alpha_schedule=schedule, warmup_steps=8 if schedule == "warmup" else 0).is_plain


WRONG = {
    "decay of a rate that does not fall": (
        {"gate": "decay", "optimizer": OptimConfig(schedule="constant")},
        "gnp.gate is decay, but optim.schedule constant ends with the highest learning rate",
    ),
    "a ramp of no gate": ({"gate_ramp_steps": 3}, "gnp.gate_ramp_steps is 3, but has no effect with gnp.direction"),
    "a limit of a fixed radius": ({"max_r": 0.1}, "gnp.max_r is 0.1, but has no effect with gnp.direction gradient"),
    "lam with a radius that grows": (
        {"alpha": None, "lam": 0.04, "gate": "tail", "gate_ramp_steps": 4},
        "alpha <= 1 except with",
    ),
    "momentum with lars": (
        {"direction": "momentum", "alpha": 1.0, "optimizer": OptimConfig(name="lars")},
        'gnp.direction "momentum" needs a momentum of all gradients: optim.name is lars',
    ),
    "momentum with muon, which keeps two kinds": (
        {"direction": "momentum", "alpha": 1.0, "optimizer": OptimConfig(name="muon")},
        'gnp.direction "momentum" needs a momentum of all gradients: optim.name is muon',
    ),
    "momentum with adafactor, which keeps one of scaled gradients": (
        {"direction": "momentum", "alpha": 1.0, "optimizer": OptimConfig(name="adafactor")},
        'gnp.direction "momentum" needs a momentum of all gradients: optim.name is adafactor',
    ),
    "momentum without momentum": (
        {"direction": "momentum", "alpha": 1.0, "optimizer": OptimConfig(momentum=0.0, nesterov=False)},
        "optim.name is sgd with optim.momentum 0.0; choose sgd with momentum, or one of adamw, lamb, lion",
    ),
    "momentum with alpha": ({"direction": "momentum"}, "has no g1 to blend with. Got alpha=0.8"),
    "momentum with groups": (
        {"direction": "momentum", "alpha": 1.0, "perturb_groups": 2},
        "needs blend='paper' and perturb_groups=1 and ascent_fraction=1. Got perturb_groups=2",
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
    "r is a number of NumPy": (
        {"r": np.float32(0.5)},
        "gnp.r is np.float32(0.5): it must be a finite number; append .item() to this number of a library",
    ),
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
    "end above the radius": (
        {"end_r": 0.1, "r_schedule": "learning_rate"},
        "gnp.end_r is 0.1 with gnp.r 0.05: it must be between 0 and that, or None",
    ),
    "end of a constant radius": ({"end_r": 0.01}, "gnp.end_r is 0.01, but has no effect with"),
    "end of a rate that does not fall": (
        {
            "end_r": 0.01,
            "r_schedule": "learning_rate",
            "optimizer": OptimConfig(learning_rate=0.1, end_learning_rate=0.1),
        },
        "gnp.end_r is 0.01, but the learning rate does not fall: optim.end_learning_rate is 0.1",
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
