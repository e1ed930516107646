"""The settings of the penalty: schedules, the steps on which it is on, and what is refused."""

import re

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp_scale.gnp import Gnp, value_and_grad

PLAIN = Gnp(r=0.0, alpha=0.0)

RISE = optax.linear_schedule(0.0, 0.4, 4)


@pytest.mark.parametrize("setting", [Gnp(r=RISE, alpha=0.8), Gnp(alpha=RISE), Gnp(lam=RISE)])
def test_schedule_without_a_step_is_an_error(setting):
    """Forgetting the step is named, rather than training with step 0 for ever."""
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
    """lambda = alpha * r, whichever of the two is given."""
    np.testing.assert_allclose(setting.values(step), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "Give exactly one of them"),
        ({"alpha": 0.8, "lam": 0.04}, "Got alpha=0.8 and lam=0.04"),
        ({"r": -0.1, "alpha": 0.8}, "Gnp.r must be finite and not negative. Got -0.1"),
        ({"alpha": -1}, "Gnp.alpha must be finite and not negative. Got -1"),
        ({"lam": float("nan")}, "Gnp.lam must be finite and not negative. Got nan"),
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
