"""The method as an optax transformation takes the steps that `value_and_grad` and the same optimizer take."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mlp import BATCH_OF_16, PARAMS, assert_trees_equal, float64, mlp_loss, on_device

from gnp_scale.gnp import Gnp, bernoulli, every, penalize_updates, value_and_grad

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_STEPS = 4
GRADIENT = jax.grad(mlp_loss)


def rise(step):
    """Schedules of optax compute in float32."""
    return 0.1 * step


SETTINGS = {
    "paper": Gnp(r=0.2, alpha=0.8),
    "plain": Gnp(r=0.2, alpha=0.0),
    "unit_norm": Gnp(r=0.2, alpha=0.8, blend="unit_norm"),
    "gsam": Gnp(r=0.2, alpha=0.4, blend="gsam"),
    "gsam, alpha 0": Gnp(r=0.2, alpha=0.0, blend="gsam"),
    "adaptive": Gnp(r=0.2, alpha=0.8, metric="adaptive"),
    "kernels": Gnp(r=0.2, alpha=0.8, mask=lambda path: "kernel" in path),
    "every": Gnp(r=0.2, alpha=0.8, gate=every(2)),
    "bernoulli": Gnp(r=0.2, alpha=0.8, gate=bernoulli(0.5, seed=1)),
    "warm-up of r": Gnp(r=rise, alpha=0.8),
    "warm-up of lam, gsam": Gnp(r=0.5, lam=rise, blend="gsam"),
}


def base():
    return optax.chain(optax.clip_by_global_norm(0.3), optax.adamw(0.01, weight_decay=0.1))


@pytest.mark.parametrize("name", SETTINGS)
def test_takes_the_steps_of_value_and_grad(name):
    """Over several steps, followed by clipping and Adam; gates and schedules count the updates."""
    with float64(True):
        batch = on_device(BATCH_OF_16, "float64")
        grad_fn = partial(GRADIENT, batch=batch)
        chain, optimizer = optax.chain(penalize_updates(SETTINGS[name]), base()), base()

        @jax.jit
        def by_chain(params, state):
            update, state = chain.update(grad_fn(params), state, params, grad_fn=grad_fn)
            return optax.apply_updates(params, update), state

        @jax.jit
        def by_value_and_grad(params, state, step):
            _, u = value_and_grad(mlp_loss, SETTINGS[name])(params, batch, step=step)
            update, state = optimizer.update(u, state, params)
            return optax.apply_updates(params, update), state

        params = expected = on_device(PARAMS, "float64")
        state, expected_state = chain.init(params), optimizer.init(params)
        for step in range(NUM_STEPS):
            params, state = by_chain(params, state)
            expected, expected_state = by_value_and_grad(expected, expected_state, jnp.int32(step))
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), params, expected)


COUNTED = {
    "always": (Gnp(r=0.2, alpha=0.8), [True] * 4),
    "plain": (Gnp(r=0.0, alpha=0.8), [False] * 4),
    "every": (Gnp(r=0.2, alpha=0.8, gate=every(3)), [True, False, False, True]),
    "schedule at 0": (Gnp(r=rise, alpha=0.8), [False, True, True, True]),
}


@pytest.mark.parametrize("name", COUNTED)
def test_the_second_gradient_is_taken_only_where_the_penalty_is_on(name):
    """A compiled step branches: on other steps nothing is computed, and g1 passes bitwise unchanged."""
    setting, expected = COUNTED[name]
    transform, calls = penalize_updates(setting), []

    def grad_fn(w):
        jax.debug.callback(lambda: calls.append(1))
        return 2 * w

    @jax.jit
    def update(g1, state, w):
        return transform.update(g1, state, w, grad_fn=grad_fn)

    w, g1 = jnp.ones(3), jnp.full(3, 0.7)
    state, taken = transform.init(w), []
    for is_on in expected:
        calls.clear()
        u, state = update(g1, state, w)
        jax.effects_barrier()
        taken.append(len(calls))
        assert np.array_equal(u, g1) != is_on
    assert taken == [int(is_on) for is_on in expected]
    assert state.count == len(expected)


def test_multi_steps_count_updates_not_microbatches():
    """With `optax.MultiSteps` outside, g1 is the mean of the microbatches' gradients, and a step is an update."""
    batch = on_device(BATCH_OF_16, "float32")
    grad_fn = partial(GRADIENT, batch=batch)
    params = on_device(PARAMS, "float32")
    chain = optax.chain(penalize_updates(Gnp(r=0.2, alpha=0.8, gate=every(2))), optax.sgd(0.1))
    multi = optax.MultiSteps(chain, every_k_schedule=2)
    state, whole_state, whole_params = multi.init(params), chain.init(params), params

    @jax.jit
    def microstep(params, state, half):
        update, state = multi.update(GRADIENT(params, half), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, update), state

    @jax.jit
    def whole_step(params, state):
        update, state = chain.update(grad_fn(params), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, update), state

    for step in range(4):
        half = {name: leaf.reshape(2, 8, -1)[step % 2] for name, leaf in batch.items()}
        params, state = microstep(params, state, half)
        if step % 2:
            whole_params, whole_state = whole_step(whole_params, whole_state)
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), params, whole_params)


@pytest.mark.parametrize("name", ["paper", "plain", "every", "warm-up of r"])
def test_updates_have_the_types_of_the_parameters_on_every_step(name):
    """Also if gradients are narrower."""
    params = on_device(PARAMS, "float32")
    grad = jax.tree.map(lambda w: jnp.ones(w.shape, jnp.bfloat16), params)
    transform = penalize_updates(SETTINGS[name])
    state = transform.init(params)
    for _ in range(3):
        updates, state = transform.update(grad, state, params, grad_fn=lambda params: grad)
        jax.tree.map(lambda u, w: np.testing.assert_equal(u.dtype, w.dtype), updates, params)


def test_a_wrong_gradient_is_never_hidden():
    """A NaN in g1 stays NaN, even if the second gradient is finite."""
    transform = penalize_updates(Gnp(alpha=1.0))
    w, g1 = jnp.ones(3), jnp.array([1.0, jnp.nan, 1.0])
    u, _ = transform.update(g1, transform.init(w), w, grad_fn=jnp.zeros_like)
    assert np.isnan(u).all()


def test_a_zero_gradient_gives_a_zero_update():
    transform = penalize_updates(Gnp(alpha=0.8))
    w = {"w": jnp.ones(3)}
    zero = jax.tree.map(jnp.zeros_like, w)
    u, _ = transform.update(zero, transform.init(w), w, grad_fn=lambda moved: optax.tree.sub(moved, w))
    assert_trees_equal(u, zero)


def test_narrow_parameters_are_not_perturbed():
    transform, w = penalize_updates(Gnp(alpha=0.8)), jnp.ones(3, jnp.bfloat16)
    with pytest.raises(ValueError, match="Got bfloat16 at the only one"):
        transform.update(w, transform.init(w), w, grad_fn=lambda w: w)


REFUSED = {
    "momentum": (Gnp(alpha=1.0, direction="momentum"), "direction='momentum'"),
    "reused": (Gnp(alpha=1.0, direction="reused"), "direction='reused'"),
    "decoupled": (Gnp(alpha=1.0, blend="decoupled"), "blend='decoupled'"),
    "groups": (Gnp(alpha=1.0, perturb_groups=2), "perturb_groups=2"),
    "a part": (Gnp(alpha=1.0, ascent_fraction=0.5), "ascent_fraction=0.5"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_need_more_than_one_gradient_are_refused(name):
    """The error names the setting and the function that supports it."""
    setting, given = REFUSED[name]
    with pytest.raises(ValueError, match=rf"{re.escape(given)}.* which need more\. Call gnp_scale\.gnp\.penalize"):
        penalize_updates(setting)


@pytest.mark.parametrize("missing", ["params", "grad_fn"])
@pytest.mark.parametrize("setting", [Gnp(alpha=0.8), Gnp(alpha=0.0)])
def test_a_call_without_the_second_gradient_is_an_error(setting, missing):
    """As from a loop written for a plain optimizer: the error shows the call."""
    transform, w = penalize_updates(setting), jnp.ones(3)
    arguments = {"params": w, "grad_fn": jnp.zeros_like} | {missing: None}
    with pytest.raises(ValueError, match=rf"Got no {missing}\. Call update\(g1, state, params, grad_fn=\.\.\.\)"):
        transform.update(w, transform.init(w), **arguments)
