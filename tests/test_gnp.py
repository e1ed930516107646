"""The penalised gradient against closed forms, float64 NumPy, optax and exact Hessian-vector products.

B: examples, D: inputs, H: hidden channels, K: classes.
"""

import doctest
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlp import BATCH_OF_16, PARAMS, assert_trees_equal, float64, mlp_loss, on_device, ulps
from oracles import inner, mlp_loss_and_grad, mlp_params, penalized

from gnp_scale.gnp import Gnp, drop_in, optax_transform, penalize, value_and_grad
from gnp_scale.gnp.perturbation import perturb
from gnp_scale.mesh import BATCH, FSDP, TENSOR, P, divisible_spec, sharding

pytestmark = pytest.mark.usefixtures("unoptimized")

PLAIN = Gnp(r=0.0, alpha=0.0)

BLENDS = ["paper", "unit_norm"]
SPECS = {
    "hidden_kernel_DxH": P(FSDP, TENSOR),
    "hidden_bias_H": P(TENSOR),
    "head_kernel_HxK": P(TENSOR, FSDP),
    "head_bias_K": P(FSDP),
}


def assert_trees_close(actual, expected, rtol):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=rtol, atol=rtol), actual, expected)


# The method.


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("r", "alpha"), [(0.05, 0.8), (1.0, 0.3), (0.1, 1.0), (2.0, 0.9)])
def test_quadratic_has_its_closed_form(r, alpha, blend):
    """Each quantity of algorithm 1 has the right value, with one norm over all leaves."""
    rng = np.random.default_rng(0)
    half_AxA = rng.normal(size=(5, 5))
    a_AxA, b_A, w_A = half_AxA @ half_AxA.T, rng.normal(size=5), rng.normal(size=5)
    g1_A = a_AxA @ w_A - b_A
    eps_A = r * g1_A / np.linalg.norm(g1_A)
    g2_A = g1_A + a_AxA @ eps_A
    u_A = (1 - alpha) * (g1_A / np.linalg.norm(g1_A) if blend == "unit_norm" else g1_A) + alpha * g2_A

    def loss_fn(params, batch):
        w = jnp.concatenate([params["first"], params["second"]])
        return w @ batch @ w / 2 - b_A @ w

    with float64(True):
        params = {"first": jnp.asarray(w_A[:2]), "second": jnp.asarray(w_A[2:])}
        loss, g1 = value_and_grad(loss_fn, PLAIN)(params, a_AxA)
        zero = jax.tree.map(jnp.zeros_like, params)
        eps = perturb(zero, g1, r, Gnp(alpha=1)).params
        _, g2 = value_and_grad(loss_fn, Gnp(r=r, alpha=1.0, blend=blend))(params, a_AxA)
        _, u = value_and_grad(loss_fn, Gnp(r=r, alpha=alpha, blend=blend))(params, a_AxA)
    np.testing.assert_allclose(loss, w_A @ a_AxA @ w_A / 2 - b_A @ w_A, rtol=1e-12)
    for actual, expected_A in ((g1, g1_A), (eps, eps_A), (g2, g2_A), (u, u_A)):
        np.testing.assert_allclose(np.concatenate(jax.tree.leaves(actual)), expected_A, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("strength", [{"r": 0.05, "alpha": 0.8}, {"r": 0.5, "alpha": 1.0}, {"r": 0.1, "lam": 0.03}])
@pytest.mark.parametrize(("dtype", "max_ulps"), [("float64", 1e-10 * 2**23), ("float32", 8)])
def test_sgd_follows_numpy(dtype, max_ulps, strength, blend):
    """u and the parameters stay on a hand-written float64 trajectory, on a network that is not quadratic."""
    r, alpha = strength["r"], strength.get("alpha", strength.get("lam", 0) / strength["r"])
    expected = PARAMS
    with float64(True):
        step = jax.jit(value_and_grad(mlp_loss, Gnp(**strength, blend=blend)))
        params, batch = on_device(PARAMS, dtype), on_device(BATCH_OF_16, dtype)
        for _ in range(4):
            loss, u = step(params, batch)
            oracle = penalized(lambda params: mlp_loss_and_grad(params, BATCH_OF_16), expected, r, alpha, blend)
            assert ulps({"loss": loss}, {"loss": np.float64(oracle.loss)}) <= max_ulps
            assert ulps(u, oracle.u) <= max_ulps
            params = jax.tree.map(lambda w, u: w - 0.3 * u, params, u)
            expected = {name: w - 0.3 * oracle.u[name] for name, w in expected.items()}
    assert ulps(params, expected) <= max_ulps


def test_tends_to_the_exact_gradient_of_the_penalised_loss():
    """As r -> 0 with lambda fixed, u is g + lambda H d and the curvature d^T H d, for d = g / ||g||, up to O(r)."""
    lam, radii, errors = 0.1, [1e-1, 1e-2, 1e-3, 1e-4], []
    with float64(True):
        params, batch = on_device(PARAMS, "float64"), on_device(BATCH_OF_16, "float64")
        gradient = partial(jax.grad(mlp_loss), batch=batch)
        g = gradient(params)
        norm = optax.tree.norm(g)
        d = jax.tree.map(lambda g: g / norm, g)
        _, h_d = jax.jvp(gradient, (params,), (d,))
        exact = jax.tree.map(lambda g, h_d: g + lam * h_d, g, h_d)
        for r in radii:
            # The blend that lets alpha = lam / r exceed 1 gives the two parts of the same u.
            result = penalize(mlp_loss, Gnp(r=r, lam=lam, blend="decoupled"))(params, batch)
            u = optax.tree.add(result.grad, result.displacement)
            error = optax.tree.norm(optax.tree.sub(u, exact))
            errors.append((error, abs(result.telemetry["curvature"] - optax.tree.vdot(d, h_d))))
    slopes = np.polyfit(np.log(radii), np.log(errors), 1)[0]
    assert np.all((slopes > 0.9) & (slopes < 1.1)), slopes
    assert np.max(errors[-1]) < 1e-4


def test_alpha_of_one_is_sam_of_optax():
    """The special case of arXiv 2010.01412 takes the steps of another implementation of it."""
    r, base = 0.2, optax.sgd(0.3, momentum=0.9)
    with float64(True):
        batch = on_device(BATCH_OF_16, "float64")
        gradient = jax.grad(mlp_loss)
        ascent = optax.chain(optax.contrib.normalize(), optax.sgd(r))
        sam = optax.contrib.sam(base, ascent, sync_period=2, reset_state=True, opaque_mode=True)
        params = sam_params = on_device(PARAMS, "float64")
        state, sam_state = base.init(params), sam.init(params)
        for _ in range(4):
            _, u = value_and_grad(mlp_loss, Gnp(r=r, alpha=1.0))(params, batch)
            update, state = base.update(u, state, params)
            params = optax.apply_updates(params, update)
            update, sam_state = sam.update(
                gradient(sam_params, batch), sam_state, sam_params, grad_fn=lambda params, _: gradient(params, batch)
            )
            sam_params = optax.apply_updates(sam_params, update)
    assert_trees_close(params, sam_params, rtol=1e-12)


# Cost.


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("off", [{"alpha": 0.0}, {"r": 0, "alpha": 0.8}, {"lam": 0.0}, {"r": 0.0, "lam": 0.1}])
def test_plain_training_is_one_pass_and_bit_identical(off, blend):
    """With the penalty off, a step has no extra cost and is bitwise plain training."""
    plain = jax.jit(jax.value_and_grad(mlp_loss))
    params, batch = on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32")
    for setting in (Gnp(**off, blend=blend), PLAIN):
        fn = jax.jit(value_and_grad(mlp_loss, setting))
        assert_trees_equal(fn(params, batch), plain(params, batch))
        assert num_compiled_matmuls(fn, params, batch) == num_compiled_matmuls(plain, params, batch) > 0


def num_compiled_matmuls(fn, *args):
    return len(re.findall(r"\b(?:dot|convolution)\(", fn.lower(*args).compile().as_text()))


def test_penalty_costs_two_passes():
    """Both gradients are computed exactly once."""
    params, batch = on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32")
    fns = jax.value_and_grad(mlp_loss), penalize(mlp_loss, Gnp(alpha=0.8)), value_and_grad(mlp_loss, Gnp(alpha=0.8))
    plain, *twice = (str(jax.make_jaxpr(fn)(params, batch)).count("dot_general[") for fn in fns)
    assert twice == [2 * plain, 2 * plain]
    assert plain == 5


# Numbers at the edge.


def bowl(params, batch):
    """Half the sum of squares, weighted by `batch`: its gradient is batch * params, leaf by leaf."""
    return sum(jnp.sum(c * w**2) / 2 for c, w in zip(jax.tree.leaves(batch), jax.tree.leaves(params), strict=True))


@pytest.mark.parametrize("blend", BLENDS)
def test_zero_gradient_gives_a_zero_step(blend):
    """At a minimum the step is 0: no division by a zero norm."""
    zero = {"a": jnp.zeros(3), "b": jnp.zeros((2, 2))}
    result = penalize(bowl, Gnp(alpha=0.8, blend=blend))(zero, jax.tree.map(jnp.ones_like, zero))
    assert_trees_equal(result.grad, zero)
    assert all(np.isfinite(value) for value in result.telemetry.values())


@pytest.mark.parametrize("exponent", [-40, -3, 20])
def test_eps_does_not_depend_on_the_scale_of_the_loss(exponent):
    """eps has length r for any scale of the loss, so u scales with the loss: bitwise for powers of two."""
    params, batch, scale = on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32"), 2.0**exponent
    zero = jax.tree.map(jnp.zeros_like, params)

    @partial(jax.jit, static_argnums=0)
    def eps_and_u(scale):
        def loss_fn(params, batch):
            return scale * mlp_loss(params, batch)

        g1 = jax.grad(loss_fn)(params, batch)
        eps = perturb(zero, g1, 0.1, Gnp(alpha=1)).params
        return eps, jax.tree.map(lambda u: u / scale, value_and_grad(loss_fn, Gnp(r=0.1, alpha=0.8))(params, batch)[1])

    assert_trees_equal(eps_and_u(scale), eps_and_u(1.0))


@given(seed=st.integers(0, 10**6), r=st.floats(2**-10, 2.0, width=32))
@settings(max_examples=30, deadline=None)
def test_alpha_of_one_is_the_perturbed_gradient(seed, r):
    """With any parameters and radius, u at alpha = 1 is SAM's gradient."""
    params = mlp_params(seed=seed)
    _, u = sam_with_radius(on_device(params, "float32"), on_device(BATCH_OF_16, "float32"), step=r)
    assert ulps(u, penalized(lambda params: mlp_loss_and_grad(params, BATCH_OF_16), params, r, 1.0).g2) <= 16


sam_with_radius = jax.jit(value_and_grad(mlp_loss, Gnp(r=lambda step: step, alpha=1.0)))
"""The radius is passed as the step, so that one compilation serves all radii."""


@given(
    place=st.integers(0, 6),
    wrong=st.sampled_from([np.nan, np.inf, -np.inf]),
    alpha=st.sampled_from([0.5, 1.0]),
    loss_fn=st.sampled_from(["bowl", "relu"]),
)
@settings(max_examples=40, deadline=None)
def test_wrong_gradient_is_never_hidden(place, wrong, alpha, loss_fn):
    """One NaN or infinity in the clean gradient makes every entry of u NaN, even where the loss hides NaNs."""
    factors = np.ones(7, np.float32)
    factors[place] = wrong
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    batch = {"a": jnp.asarray(factors[:3]), "b": jnp.asarray(factors[3:].reshape(2, 2))}
    _, u = value_and_grad({"bowl": bowl, "relu": rectified}[loss_fn], Gnp(alpha=alpha))(params, batch)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(u))


def rectified(params, batch):
    """Its gradient at NaN is 0: it hides a wrong perturbation."""
    return sum(jnp.sum(c * jax.nn.relu(params[name])) for name, c in batch.items())


@pytest.mark.parametrize("loss_fn", [bowl, rectified])
@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_overflow_of_the_norm_is_seen(alpha, blend, loss_fn):
    """Finite gradients whose norm overflows give NaN, not a finite step with eps = 0."""
    params = {"a": jnp.ones(3), "b": jnp.ones((2, 2))}
    batch = jax.tree.map(lambda w: 1e25 * w, params)
    result = penalize(loss_fn, Gnp(alpha=alpha, blend=blend))(params, batch)
    assert np.isinf(result.telemetry["grad_norm"])
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(result.grad))


# The interface of jax.value_and_grad.

TREES = {
    "array": 1.0,
    "dict": {"b": 1.0, "a": 2.0},
    "nested": {"layers": [(1.0, 2.0), {"w": 3.0}], "none": None, "empty": ()},
}


@pytest.mark.parametrize("jit", [jax.jit, lambda fn: fn], ids=["jit", "eager"])
@pytest.mark.parametrize("has_aux", [False, True])
@pytest.mark.parametrize("tree", TREES)
def test_returns_what_jax_value_and_grad_returns(tree, has_aux, jit):
    """A drop-in: same structure and types, and bitwise the loss and aux of the clean pass."""
    params = jax.tree.map(lambda value: jnp.full((2, 3), value, jnp.float32), TREES[tree])
    batch, offset = jax.tree.map(lambda w: w + 1, params), jnp.ones((2, 3))

    def loss_fn(params, batch, offset, factor):
        shifted = jax.tree.map(lambda w: w + offset, params)
        return (factor * bowl(shifted, batch), {"seen": shifted}) if has_aux else factor * bowl(shifted, batch)

    value, u = jit(value_and_grad(loss_fn, Gnp(r=0.5, alpha=0.8), has_aux=has_aux))(params, batch, offset, 3.0)
    expected_value, g1 = jit(jax.value_and_grad(loss_fn, has_aux=has_aux))(params, batch, offset, 3.0)
    assert_trees_equal(value, expected_value)
    assert jax.tree.structure((value, u)) == jax.tree.structure((expected_value, g1))
    assert jax.tree.map(jax.typeof, u) == jax.tree.map(jax.typeof, params)
    assert not np.array_equal(jax.tree.leaves(u)[0], jax.tree.leaves(g1)[0])


ARGUMENTS = {
    "first": (0, lambda w, b: (w, BATCH_OF_16)),
    "second": (1, lambda w, b: (BATCH_OF_16, w)),
    "last": (-1, lambda w, b: (BATCH_OF_16, w)),
    "several": ((0, 2), lambda w, b: (w, BATCH_OF_16, b)),
    "several, turned round": ([2, 0], lambda w, b: (w, BATCH_OF_16, b)),
    "one in a sequence": ((0,), lambda w, b: (w, BATCH_OF_16)),
}


@pytest.mark.parametrize("gnp", [Gnp(r=0.5, alpha=0.8), Gnp(r=0.5, alpha=0.8, perturb_groups=2), PLAIN], ids=str)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_argnums_and_keywords_are_those_of_jax(name, gnp):
    """Several arguments form one tree of parameters, with one norm over all; the batch is the first other argument."""
    argnums, arrange = ARGUMENTS[name]
    heads = {key: w for key, w in PARAMS.items() if key.startswith("head")}
    hidden = {key: w for key, w in PARAMS.items() if key.startswith("hidden")}
    args = arrange(*map(partial(on_device, dtype="float32"), (hidden, heads) if "several" in name else (PARAMS, {})))

    def loss_fn(*args, factor, offset=0.0):
        batch = next(arg for arg in args if "x_BxD" in arg)
        params = {key: w for arg in args if "x_BxD" not in arg for key, w in arg.items()}
        return factor * mlp_loss(params, batch) + offset

    keywords = {"factor": jnp.asarray(2.0), "offset": 3.0}
    loss, u = jax.jit(value_and_grad(loss_fn, gnp, argnums=argnums))(*args, **keywords)
    expected_loss, g1 = jax.value_and_grad(loss_fn, argnums=argnums)(*args, **keywords)
    assert jax.tree.structure(u) == jax.tree.structure(g1)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    whole = value_and_grad(lambda *args: loss_fn(*args, **keywords), gnp)(on_device(PARAMS, "float32"), BATCH_OF_16)[1]
    trees = [u] if isinstance(u, dict) else u
    assert ulps({key: leaf for tree in trees for key, leaf in tree.items()}, jax.tree.map(np.float64, whole)) <= 8


def test_a_loss_of_parameters_alone_needs_no_batch():
    loss, u = value_and_grad(lambda w, *, factor: factor * jnp.sum(w**2) / 2, Gnp(r=0.5, alpha=1.0))(
        jnp.asarray([3.0, 4.0]), factor=2.0
    )
    assert loss == 25
    np.testing.assert_allclose(u, [2 * 3.3, 2 * 4.4], rtol=1e-6)


CALLS = {
    "nothing": (0, lambda fn: fn(), "Got argnums=0 and 0 positional arguments"),
    "by keyword": (0, lambda fn: fn(w=jnp.ones(2)), "Pass the differentiated ones by position"),
    "too far": ((0, 2), lambda fn: fn(jnp.ones(2), jnp.ones(2)), "Got argnums=(0, 2) and 2 positional arguments"),
    "twice": ((0, -2), lambda fn: fn(jnp.ones(2), jnp.ones(2)), "each once"),
    "no batch": ((0, 1), lambda fn: fn(jnp.ones(2), jnp.ones(2)), "Pass the batch by position"),
    "batch by keyword": (0, lambda fn: fn(jnp.ones(2), batch=jnp.ones(2)), "Pass the batch by position"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_without_its_parameters_or_its_batch_is_an_error(name):
    argnums, call, message = CALLS[name]
    fn = value_and_grad(lambda w, batch: jnp.vdot(w, batch), Gnp(alpha=1.0, perturb_groups=2), argnums=argnums)
    with pytest.raises(ValueError, match=re.escape(message)):
        call(fn)


def test_bfloat16_gradients_are_blended_in_float32():
    """u comes from the two bfloat16 gradients, and has the float32 of the parameters."""
    params, batch = on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "bfloat16")
    copy = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    r, alpha = 2.0, 0.7
    g1 = jax.grad(mlp_loss)(copy, batch)
    wide = {name: np.asarray(g, np.float64) for name, g in g1.items()}
    scale = r / np.sqrt(inner(wide, wide))
    perturbed = {name: jnp.asarray(np.float64(w) + scale * wide[name], "bfloat16") for name, w in params.items()}
    g2 = jax.grad(mlp_loss)(perturbed, batch)
    result = penalize(mlp_loss, Gnp(r=r, alpha=alpha))(params, batch, copy=copy)
    expected = {name: (1 - alpha) * g + alpha * np.float64(g2[name]) for name, g in wide.items()}
    assert {u.dtype for u in result.grad.values()} == {jnp.dtype("float32")}
    assert ulps(result.grad, expected) <= 4
    assert {value.dtype for value in result.telemetry.values()} == {jnp.dtype("float32")}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("others", ["float32", None], ids=["mixed", "all"])
def test_narrow_parameters_are_not_perturbed(dtype, others):
    """Rounding would silently remove most of the perturbation. Parameters that are not perturbed may be narrow."""
    params = {name: w.astype(others or dtype) for name, w in on_device(PARAMS, "float32").items()}
    params["hidden_bias_H"] = params["hidden_bias_H"].astype(dtype)
    batch = on_device(BATCH_OF_16, dtype)
    first = "hidden_bias_H" if others else "head_bias_K"
    with pytest.raises(ValueError, match=rf"at least float32.* Got {dtype} at {first}\. Keep the parameters") as error:
        value_and_grad(mlp_loss, Gnp(alpha=0.8))(params, batch)
    assert "\n" not in str(error.value)
    assert_trees_equal(value_and_grad(mlp_loss, PLAIN)(params, batch), jax.value_and_grad(mlp_loss)(params, batch))
    if others:
        masked = Gnp(alpha=0.8, mask=lambda path: path != first)
        assert value_and_grad(mlp_loss, masked)(params, batch)[1][first].dtype == dtype


def test_a_copy_is_of_one_type():
    params, batch = on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32")
    copy = params | {"head_bias_K": params["head_bias_K"].astype(jnp.bfloat16)}
    with pytest.raises(ValueError, match=r"must have one type\. Got bfloat16, float32\. Cast all"):
        penalize(mlp_loss, Gnp(alpha=0.8))(params, batch, copy=copy)


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("shape", [(1, 8, 1), (8, 1, 1), (1, 4, 2), (2, 2, 2)])
def test_does_not_depend_on_the_mesh(shape, blend, set_mesh):
    """u has the types and shardings of the parameters on any mesh, and the values of one device."""
    setting = Gnp(r=0.5, alpha=0.8, blend=blend)
    expected = penalize(mlp_loss, setting)(on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32"))
    set_mesh(*shape)
    params = {name: place(w, SPECS[name]) for name, w in PARAMS.items()}
    batch = {name: place(leaf, P(BATCH, None)) for name, leaf in BATCH_OF_16.items()}
    kernel = params["hidden_kernel_DxH"]
    assert kernel.addressable_data(0).size * shape[1] * shape[2] == kernel.size

    result = jax.jit(penalize(mlp_loss, setting))(params, batch)
    assert jax.tree.map(jax.typeof, result.grad) == jax.tree.map(jax.typeof, params)
    assert ulps(result.grad, {name: np.float64(u) for name, u in expected.grad.items()}) <= 8
    assert result.telemetry.keys() == expected.telemetry.keys()
    assert all(value.sharding.is_fully_replicated for value in result.telemetry.values())
    for name, value in expected.telemetry.items():
        np.testing.assert_allclose(result.telemetry[name], value, rtol=1e-5, err_msg=name)


def place(leaf, spec):
    return jax.device_put(np.float32(leaf), sharding(divisible_spec(spec, leaf.shape) or P()))


# Schedules.

RISE = optax.linear_schedule(0.0, 0.4, 4)
FALL = optax.cosine_decay_schedule(0.8, 10)
SCHEDULED = [{"r": RISE, "alpha": 0.8}, {"r": 0.1, "alpha": FALL}, {"r": 0.5, "lam": RISE}, {"r": RISE, "lam": 0.02}]


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("scheduled", SCHEDULED)
def test_schedule_is_a_number_at_each_step(scheduled, blend):
    """A traced step gives the same as numbers, and bitwise the plain gradient if the schedule is 0."""
    params, batch = on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32")
    fn = jax.jit(value_and_grad(mlp_loss, Gnp(**scheduled, blend=blend)))
    for step in (0, 3, 10):
        numbers = {name: float(value(step)) if callable(value) else value for name, value in scheduled.items()}
        _, expected = jax.jit(value_and_grad(mlp_loss, Gnp(**numbers, blend=blend)))(params, batch)
        _, u = fn(params, batch, step=jnp.asarray(step))
        assert ulps(u, {name: np.float64(leaf) for name, leaf in expected.items()}) <= (
            0 if 0 in numbers.values() else 4
        )


# Telemetry.


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize(("r", "alpha"), [(0.05, 0.8), (0.5, 1.0)])
def test_telemetry_is_what_it_says(r, alpha, blend):
    """Each entry equals its definition, computed from the vectors themselves."""
    oracle = penalized(lambda params: mlp_loss_and_grad(params, BATCH_OF_16), PARAMS, r, alpha, blend)
    norm1, norm2 = np.sqrt(inner(oracle.g1, oracle.g1)), np.sqrt(inner(oracle.g2, oracle.g2))
    plain = {"grad_norm": norm1, "update_grad_norm": norm1, "r": 0, "alpha": 0, "lambda": 0, "on": 0}
    expected = dict(
        plain,
        **{
            "update_grad_norm": np.sqrt(inner(oracle.u, oracle.u)),
            "r": r,
            "alpha": alpha,
            "lambda": r * alpha,
            "on": 1,
        },
        loss_perturbed=oracle.loss_perturbed,
        grad_norm_perturbed=norm2,
        cosine=inner(oracle.g1, oracle.g2) / (norm1 * norm2),
        curvature=(inner(oracle.g1, oracle.g2) / norm1 - norm1) / r,
    )
    with float64(True):
        for setting, entries in ((PLAIN, plain), (Gnp(r=r, alpha=alpha, blend=blend), expected)):
            result = penalize(mlp_loss, setting)(on_device(PARAMS, "float64"), on_device(BATCH_OF_16, "float64"))
            assert result.telemetry.keys() == entries.keys()
            for name, value in entries.items():
                rtol = 1e-7 if name in ("r", "alpha", "lambda") else 1e-10
                np.testing.assert_allclose(result.telemetry[name], value, rtol=rtol, err_msg=name)


def test_example_of_the_documentation_runs():
    """The docstring's example prints the shown result."""
    failed, attempted = map(sum, zip(doctest.testmod(drop_in), doctest.testmod(optax_transform), strict=True))
    assert (failed, attempted > 0) == (0, True)
