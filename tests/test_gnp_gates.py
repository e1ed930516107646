"""Gates and kinds: which steps have a second pass. The host and the compiled step must agree about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnp_scale.gnp import Gnp, StepKind, bernoulli, every, window

pytestmark = pytest.mark.usefixtures("unoptimized")

STEPS = st.lists(st.integers(0, 10**6), min_size=1, max_size=8)
GATES = st.one_of(
    st.builds(every, st.integers(1, 50)),
    st.builds(lambda start, length: window(start, start + length), st.integers(0, 10**6), st.integers(1, 10**6)),
    st.builds(bernoulli, st.floats(0, 1), st.integers(0, 2**32 - 1)),
)


@given(gate=GATES, steps=STEPS)
@settings(max_examples=20, deadline=None)
def test_gates_answer_alike_however_they_are_asked(gate, steps):
    """The host, which evaluates all steps at once, and a compiled step, which evaluates one, take the same branch."""
    together = np.asarray(gate(np.asarray(steps)))
    np.testing.assert_array_equal(gate(np.asarray(steps)[None]), together[None])
    assert [bool(gate(step)) for step in steps] == together.tolist()
    assert bool(gate(jnp.asarray(steps[0], jnp.int32))) == together[0]


@pytest.mark.parametrize("implementation", ["rbg", "unsafe_rbg", "threefry2x32"])
def test_random_gate_does_not_depend_on_settings_of_jax(implementation):
    """Some generators draw differently for one step and for an array of steps; and precision changes draws."""
    steps = np.arange(64)
    expected = np.asarray(bernoulli(0.5, seed=3)(steps))
    for is_wide in (False, True):
        with jax.default_prng_impl(implementation), jax.enable_x64(is_wide):
            gate = bernoulli(0.5, seed=3)
            np.testing.assert_array_equal(gate(steps), expected)
            assert [bool(gate(step)) for step in steps[:8]] == expected[:8].tolist()


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_random_gate_is_open_with_its_probability(p):
    """Over ten thousand steps, within four standard deviations; seeds draw differently."""
    on, other = (np.asarray(bernoulli(p, seed)(np.arange(10_000))) for seed in (0, 1))
    assert abs(on.mean() - p) <= 4 * np.sqrt(p * (1 - p) / len(on))
    assert np.array_equal(on, other) == (p in (0, 1))


@given(k=st.integers(1, 9), start=st.integers(0, 20), length=st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_regular_gates_are_open_where_they_say(k, start, length):
    steps = np.arange(45)
    np.testing.assert_array_equal(every(k)(steps), [step in range(0, 45, k) for step in steps])
    np.testing.assert_array_equal(
        window(start, start + length)(steps), [step in range(start, start + length) for step in steps]
    )


def test_step_kinds_are_those_of_gate_schedule_and_direction():
    """The host gets the same kind for each step if it asks for all steps, or after a restart for the rest."""
    gnp = Gnp(r=lambda step: 0.1 * np.asarray(step), alpha=1.0, direction="reused", reuse_every=3, gate=window(0, 7))
    expected = [StepKind.PLAIN] + [StepKind.FULL, StepKind.REUSE, StepKind.REUSE] * 2 + [StepKind.PLAIN]
    np.testing.assert_array_equal(gnp.step_kinds(np.arange(8)), expected)
    np.testing.assert_array_equal(gnp.step_kinds(np.arange(5, 8)), expected[5:])
    assert [gnp.num_passes(kind) for kind in (StepKind.PLAIN, StepKind.REUSE, StepKind.FULL)] == [1, 1, 2]
    assert Gnp(alpha=1.0, ascent_fraction=0.25).num_passes(StepKind.FULL) == 1.25
    assert Gnp(alpha=1.0, direction="momentum").num_passes(StepKind.FULL) == 1
