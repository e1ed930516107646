"""The settings of the penalty: schedules, the steps on which it is on, and what is refused."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp_scale.gnp import Gnp, NormGate, StepKind, bernoulli, every, penalize, value_and_grad, window

PLAIN = Gnp(r=0.0, alpha=0.0)

RISE = optax.linear_schedule(0.0, 0.4, 4)


@pytest.mark.parametrize("setting", [Gnp(r=RISE, alpha=0.8), Gnp(alpha=RISE), Gnp(lam=RISE)])
def test_schedule_without_a_step_is_an_error(setting):
    """A missing step is an error, instead of training with step 0 for ever."""
    fn = value_and_grad(lambda params, batch: jnp.vdot(batch, params), setting)
    with pytest.raises(ValueError, match=r"no step was given\. Call the function with step="):
        fn(jnp.ones(2), jnp.ones(2))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (Gnp(alpha=0.8), [True] * 6),
        (PLAIN, [False] * 6),
        (Gnp(r=RISE, alpha=0.0), [False] * 6),
        (Gnp(r=0.0, lam=RISE), [False] * 6),
        (Gnp(alpha=optax.constant_schedule(0.8)), [True] * 6),
        (Gnp(alpha=lambda step: step >= 3), [False] * 3 + [True] * 3),
        (Gnp(r=lambda step: 0.1 * np.asarray(step), lam=0.1), [False] + [True] * 5),
        (Gnp(r=0.1, alpha=optax.linear_schedule(0.4, 0.0, 4)), [True] * 4 + [False] * 2),
        (Gnp(r=RISE, alpha=0.8), [False] + [True] * 5),
        (Gnp(r=0.1, lam=RISE), [False] + [True] * 5),
        (Gnp(r=RISE, lam=0.02), [False] + [True] * 5),
    ],
)
def test_is_on_names_the_steps_with_a_second_pass(setting, expected):
    """The host chooses the one-pass step from this: a wrong entry trains on the wrong loss."""
    steps = np.arange(6)
    np.testing.assert_array_equal(setting.is_on(steps), expected)
    np.testing.assert_array_equal(setting.is_on(steps.reshape(2, 3)), np.reshape(expected, (2, 3)))


@pytest.mark.parametrize(
    ("setting", "step", "expected"),
    [
        (Gnp(alpha=0.8), None, (0.05, 0.8)),
        (Gnp(r=0.1, lam=0.05), None, (0.1, 0.5)),
        (Gnp(r=0.0, lam=0.05), None, (0.0, 0.0)),
        (Gnp(r=RISE, alpha=0.8), 2, (0.2, 0.8)),
        (Gnp(r=RISE, lam=0.1), 0, (0.0, 0.0)),
        (Gnp(r=RISE, lam=0.1), 2, (0.2, 0.5)),
        (Gnp(r=0.1, lam=RISE), 1, (0.1, 1.0)),
        (Gnp(r=RISE, lam=RISE), 3, (0.3, 1.0)),
    ],
)
def test_values_of_r_and_alpha(setting, step, expected):
    """lambda = alpha * r, whether alpha or lam is given."""
    np.testing.assert_allclose(setting.values(step), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give exactly one of them"),
        ({"alpha": 0.8, "lam": 0.04}, "Got alpha=0.8 and lam=0.04"),
        ({"r": -0.1, "alpha": 0.8}, "Gnp.r must be finite and not negative. Got -0.1"),
        ({"alpha": -1}, "Gnp.alpha must be finite and not negative. Got -1"),
        ({"lam": float("nan")}, "Gnp.lam must be finite and not negative. Got nan"),
        ({"alpha": 1, "norm_gate": NormGate(0.0, 1.5)}, "NormGate.decay must be in [0, 1). Got 1.5"),
        ({"alpha": 1, "average_weight": float("nan")}, "Gnp.average_weight must be finite. Got nan"),
        ({"r": float("inf"), "alpha": 1}, "Gnp.r must be finite and not negative. Got inf"),
        (
            {"alpha": 0.8, "blend": "unitnorm"},
            "Gnp.blend must be one of ('paper', 'unit_norm', 'gsam', 'decoupled'). Got 'unitnorm'",
        ),
    ],
)
def test_wrong_settings_are_errors(arguments, message):
    """Each error says what was given and what holds."""
    with pytest.raises(ValueError, match=re.escape(message)):
        Gnp(**arguments)


def growing(step):
    return 0.3 * np.asarray(step)


SCHEDULES = {
    "r smaller than lam": (
        Gnp(r=lambda step: 0.1 * np.asarray(step), lam=0.35),
        "r=0.1, alpha=3.5 (lam / r) at step 1",
    ),
    "lam larger than r": (Gnp(r=0.5, lam=growing), "r=0.5, alpha=1.2 (lam / r) at step 2"),
    "alpha above 1": (Gnp(alpha=growing, blend="gsam"), "alpha=1.2 at step 4"),
    "negative r": (Gnp(r=lambda step: 0.1 - 0.05 * np.asarray(step), alpha=1.0), "at step 3"),
    "r is NaN": (
        Gnp(r=lambda step: np.where(np.asarray(step) == 2, np.nan, 0.1), alpha=1.0),
        "Got r=nan, alpha=1.0 at",
    ),
    "infinite alpha": (Gnp(alpha=lambda step: 1 / np.float64(5 - step), blend="decoupled"), "alpha=inf at step 5"),
    "in the window": (Gnp(r=0.1, lam=growing, gate=window(3, 6)), "at step 3"),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("direction", ["gradient", "reused"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_with_a_value_that_no_one_can_mean_is_refused_before_the_first_step(name, direction):
    """It is an error when the host asks for the kinds; inside a program only the numbers would show it."""
    setting, message = SCHEDULES[name]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        (setting if setting.blend != "paper" else replace(setting, direction=direction)).step_kinds(np.arange(8))
    assert "\n" not in str(error.value)


SOUND = {
    "equal but for rounding": Gnp(r=lambda step: jnp.float32(0.3) * (step / 7), lam=lambda step: 0.3 * (step / 7)),
    "above 1, decoupled": Gnp(r=0.1, lam=growing, blend="decoupled"),
    "above 1 behind a gate": Gnp(r=0.1, lam=growing, gate=window(0, 1)),
    "off": Gnp(r=0.0, lam=growing),
    "off by alpha": Gnp(r=lambda step: -1.0, alpha=0.0),
}


@pytest.mark.parametrize("name", SOUND)
def test_other_schedules_are_not_refused(name):
    SOUND[name].step_kinds(np.arange(8))


@pytest.mark.parametrize("name", ["r", "alpha"])
def test_a_schedule_that_is_nan_inside_a_program_is_never_hidden(name):
    """It does not turn the penalty off."""
    setting = Gnp(**{"r": 0.1, "alpha": 1.0} | {name: lambda step: jnp.nan * step})
    fn = jax.jit(value_and_grad(lambda w, batch: jnp.sum(w**2), setting))
    _, u = fn(jnp.ones(2), jnp.ones(2), step=jnp.asarray(1))
    assert np.isnan(u).all()


def mean_of_line(params, batch):
    return jnp.mean(batch @ params["kernel"] + params["bias"])


MOMENTUM, REUSED = Gnp(alpha=1.0, direction="momentum"), Gnp(alpha=1.0, direction="reused")
DECOUPLED = Gnp(alpha=1.0, blend="decoupled")
WEIGHTS, EXAMPLES = {"kernel": jnp.ones(2), "bias": jnp.zeros(())}, jnp.ones((4, 2))

WRONG = {
    "momentum with gsam": (
        lambda: Gnp(alpha=1.0, direction="momentum", blend="gsam"),
        "The direction \"momentum\" needs blend='paper' and perturb_groups=1 and ascent_fraction=1. Got blend='gsam'.",
    ),
    "momentum with groups": (
        lambda: Gnp(alpha=1.0, direction="momentum", perturb_groups=2),
        "Got perturb_groups=2. Change it, or the other.",
    ),
    "reused with a part": (
        lambda: Gnp(alpha=1.0, direction="reused", ascent_fraction=0.5),
        "Got ascent_fraction=0.5. Change it, or the other.",
    ),
    "stale with a part": (lambda: Gnp(alpha=1.0, direction="stale", ascent_fraction=0.5), "Got ascent_fraction=0.5."),
    "stale with alpha": (lambda: Gnp(alpha=0.8, direction="stale"), 'The direction "stale" has no g1 to blend with.'),
    "loss along momentum": (
        lambda: Gnp(alpha=1.0, direction="momentum", radius="loss"),
        "The radius \"loss\" needs direction='gradient' or 'reused'. Got direction='momentum'.",
    ),
    "loss along an average": (lambda: Gnp(alpha=1.0, direction="friendly", radius="loss"), "Got direction='friendly'."),
    "loss and lam": (lambda: Gnp(lam=0.01, radius="loss"), "and alpha is not lam / r. Got lam=0.01. Give alpha."),
    "layers and loss": (lambda: Gnp(alpha=1.0, metric="layerwise", radius="loss"), "Got radius='loss'."),
    "norm gate and groups": (
        lambda: Gnp(alpha=1.0, norm_gate=NormGate(0.0), perturb_groups=2),
        "A norm_gate needs direction='gradient' and blend='paper' or 'unit_norm' or 'gsam' and perturb_groups=1 and",
    ),
    "norm gate and decoupled": (lambda: Gnp(alpha=1.0, norm_gate=NormGate(0.0), blend="decoupled"), "='decoupled'."),
    "average for ever": (lambda: Gnp(alpha=1.0, average_decay=1.0), "Gnp.average_decay must be in [0, 1). Got 1.0."),
    "no length": (lambda: Gnp(alpha=1.0, max_r=0.0), "Gnp.max_r must be positive. Got 0.0."),
    "momentum with alpha": (
        lambda: Gnp(alpha=0.8, direction="momentum"),
        'The direction "momentum" has no g1 to blend with. Got alpha=0.8, lam=None. Give alpha=1.',
    ),
    "lam above r": (
        lambda: Gnp(r=0.05, lam=1.0),
        "alpha may exceed 1 only with blend=\"decoupled\". Got 20.0 (lam=1.0 / r=0.05) with 'paper'. Give alpha in",
    ),
    "a NumPy alpha": (lambda: Gnp(alpha=np.float32(1.5)), "alpha may exceed 1"),
    "a NumPy NaN": (lambda: Gnp(r=np.float32("nan"), alpha=1.0), "Gnp.r must be finite and not negative. Got nan."),
    "alpha above 1": (lambda: Gnp(alpha=1.5), 'alpha may exceed 1 only with blend="decoupled". Got 1.5'),
    "no groups": (
        lambda: Gnp(alpha=1.0, perturb_groups=0),
        "Gnp.perturb_groups must be a whole number of at least 1. Got 0.",
    ),
    "reuse never": (
        lambda: Gnp(alpha=1.0, reuse_every=0),
        "Gnp.reuse_every must be a whole number of at least 1. Got 0.",
    ),
    "no examples": (lambda: Gnp(alpha=1.0, ascent_fraction=0.0004), "must be in [0.001, 1]. Got 0.0004."),
    "more than all": (lambda: Gnp(alpha=1.0, ascent_fraction=1.5), "must be in [0.001, 1]. Got 1.5."),
    "every 0": (lambda: every(0), "A gate opens every k >= 1 steps. Got k=0."),
    "window of nothing": (lambda: window(5, 5), "A window is 0 <= start < stop. Got start=5, stop=5."),
    "window before 0": (lambda: window(-1, 5), "Got start=-1, stop=5."),
    "p above 1": (lambda: bernoulli(1.5, 0), "A probability is in [0, 1]. Got p=1.5."),
    "value_and_grad of momentum": (
        lambda: value_and_grad(mean_of_line, MOMENTUM),
        "Got direction='momentum', blend='paper', norm_gate=None, which need or return more. Call penalize instead.",
    ),
    "value_and_grad of decoupled": (
        lambda: value_and_grad(mean_of_line, DECOUPLED),
        "blend='decoupled', norm_gate=None, which need or return more. Call penalize instead.",
    ),
    "gate without a step": (
        lambda: value_and_grad(mean_of_line, Gnp(alpha=1.0, gate=every(2)))(WEIGHTS, EXAMPLES),
        "no step was given. Call the function with step=...",
    ),
    "momentum without one": (
        lambda: penalize(mean_of_line, MOMENTUM)(WEIGHTS, EXAMPLES),
        "Got no momentum. Call the function with momentum=..., at first zeros like the parameters.",
    ),
    "reuse of nothing": (
        lambda: penalize(mean_of_line, REUSED)(WEIGHTS, EXAMPLES, kind=StepKind.REUSE),
        'the direction "reused" a step needs a value from an earlier step. Got no state. Call the function with state',
    ),
    "stale without a step before": (
        lambda: penalize(mean_of_line, Gnp(alpha=1.0, direction="stale"))(WEIGHTS, EXAMPLES),
        "Got no state. Call the function with state=..., at first Gnp.init_state(params).",
    ),
    "friendly without an average": (
        lambda: penalize(mean_of_line, Gnp(alpha=1.0, direction="friendly"))(WEIGHTS, EXAMPLES),
        "Got no state.",
    ),
    "norm gate without its averages": (
        lambda: penalize(mean_of_line, Gnp(alpha=1.0, norm_gate=NormGate(0.0)))(WEIGHTS, EXAMPLES),
        "With a norm_gate a step needs a value from an earlier step. Got no state.",
    ),
    "value_and_grad with a norm gate": (
        lambda: value_and_grad(mean_of_line, Gnp(alpha=1.0, norm_gate=NormGate(0.0))),
        "norm_gate=NormGate(threshold=0.0, decay=0.9), which need or return more.",
    ),
    "mask of nothing": (
        lambda: value_and_grad(mean_of_line, Gnp(alpha=1.0, mask=lambda path: False))(WEIGHTS, EXAMPLES),
        "Got one that is False for all of bias, kernel.",
    ),
    "groups that do not fit": (
        lambda: value_and_grad(mean_of_line, Gnp(alpha=1.0, perturb_groups=3))(WEIGHTS, EXAMPLES),
        "Got 4 examples for 3 parts. Change the batch size, perturb_groups",
    ),
    "a part that does not fit": (
        lambda: value_and_grad(mean_of_line, Gnp(alpha=1.0, ascent_fraction=1 / 3))(WEIGHTS, EXAMPLES),
        "Got 4 examples for 3 parts.",
    ),
}


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_is_one_clear_error(make, message):
    """Each says what holds, what was given and what to change, in one line."""
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        make()
    assert "\n" not in str(error.value)
