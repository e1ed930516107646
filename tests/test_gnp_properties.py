"""What holds for every variant of the method, whatever the numbers."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlp import BATCH_OF_16, PARAMS, assert_trees_equal, float64, mlp_loss, on_device, ulps
from oracles import asam, euclidean, layerwise, mlp_loss_and_grad, penalized

from gnp_scale.gnp import Gnp, NormGate, StepKind, combine, penalize, value_and_grad, window
from gnp_scale.gnp.perturbation import perturb
from gnp_scale.mesh import FSDP, P, sharding

pytestmark = pytest.mark.usefixtures("unoptimized")


def is_kernel(path):
    return path.endswith("kernel")


VARIANTS = {
    "paper": Gnp(r=0.2, alpha=0.8),
    "sam": Gnp(r=0.2, alpha=1.0),
    "unit_norm": Gnp(r=0.2, alpha=0.8, blend="unit_norm"),
    "gsam": Gnp(r=0.2, alpha=0.4, blend="gsam"),
    "gsam, alpha 0": Gnp(r=0.2, alpha=0.0, blend="gsam"),
    "decoupled": Gnp(r=0.2, alpha=1.5, blend="decoupled"),
    "momentum": Gnp(r=0.2, alpha=1.0, direction="momentum"),
    "reused": Gnp(r=0.2, alpha=0.8, direction="reused"),
    "stale": Gnp(r=0.2, alpha=1.0, direction="stale"),
    "friendly": Gnp(r=0.2, alpha=0.8, direction="friendly"),
    "rise of the loss": Gnp(r=0.2, alpha=0.8, radius="loss", max_r=0.5),
    "not normalised": Gnp(r=0.2, alpha=0.8, radius="gradient"),
    "norm gate": Gnp(r=0.2, alpha=0.8, norm_gate=NormGate(0.0)),
    "layerwise": Gnp(r=0.2, alpha=0.8, metric="layerwise"),
    "adaptive": Gnp(r=0.2, alpha=0.8, metric="adaptive"),
    "kernels": Gnp(r=0.2, alpha=0.8, mask=is_kernel),
    "groups": Gnp(r=0.2, alpha=0.8, perturb_groups=2),
    "ascent 1/2": Gnp(r=0.2, alpha=0.8, ascent_fraction=0.5),
    "gsam, adaptive, kernels, groups, ascent 1/2": Gnp(
        r=0.2, alpha=0.4, blend="gsam", metric="adaptive", mask=is_kernel, perturb_groups=2, ascent_fraction=0.5
    ),
}
METRICS = {"euclidean": euclidean, "adaptive": asam, "layerwise": layerwise}
SMALL = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(2)}
PARAMS_32, BATCH_32 = on_device(PARAMS, "float32"), on_device(BATCH_OF_16, "float32")


def memory_for(gnp, value):
    """The extra arguments of directions with a memory, filled with `value`."""
    leaves = jax.tree.map(lambda w: jnp.full_like(w, value), SMALL)
    return {"state": jax.tree.map(lambda x: jnp.full_like(x, value), gnp.init_state(SMALL)), "momentum": leaves}


@pytest.mark.parametrize("num_accumulated", [1, 2])
@pytest.mark.parametrize("name", ["paper", "friendly", "norm gate", "groups"])
def test_the_loss_is_traced_once_for_all_passes_groups_and_microbatches_of_a_size(name, num_accumulated):
    """Tracing a network takes seconds."""
    sizes = []

    def loss(params, batch):
        sizes.append(len(jax.tree.leaves(batch)[0]))
        return mlp_loss(params, batch)

    gnp = VARIANTS[name]
    fn = combine(loss, gnp, is_pure=True, num_accumulated=num_accumulated)
    for kind in (StepKind.PLAIN, StepKind.FULL):
        jax.eval_shape(partial(fn, kind=kind), PARAMS_32, BATCH_32, step=1, state=gnp.init_state(PARAMS_32))
    assert len(sizes) == len(set(sizes))


def test_a_loss_may_take_and_return_what_is_no_array_and_depend_on_what_changes():
    factor = {"value": 1.0}

    def loss(params, batch, name, num_rows):
        loss = factor["value"] * jnp.sum(params[name]) * jnp.sum(batch["x_BxD"][:num_rows])
        return loss, {"name": name, "num_rows": num_rows}

    fn = penalize(loss, Gnp(r=0.2, alpha=0.8), has_aux=True)

    def run(params, batch):
        result = fn(params, batch, "hidden_bias_H", 3)
        assert result.aux["name"] == "hidden_bias_H"
        return result.loss * jnp.ones(result.aux["num_rows"])

    before = jax.jit(run)(PARAMS_32, BATCH_32)
    factor["value"] = jnp.float32(2)
    np.testing.assert_allclose(jax.jit(lambda *args: run(*args))(PARAMS_32, BATCH_32), 2 * before, rtol=1e-6)


# Off is plain training.


@cache
def plain(loss_fn):
    return jax.jit(jax.value_and_grad(loss_fn))


@pytest.mark.parametrize("name", VARIANTS)
def test_the_plain_kind_is_jax_value_and_grad(name):
    """Steps with a closed gate are bitwise plain training, for every variant."""
    result = jax.jit(partial(penalize(mlp_loss, VARIANTS[name]), kind=StepKind.PLAIN))(PARAMS_32, BATCH_32)
    assert_trees_equal((result.loss, result.grad), plain(mlp_loss)(PARAMS_32, BATCH_32))
    assert result.displacement is None
    assert result.telemetry["on"] == 0


@pytest.mark.parametrize(
    ("blend", "off"),
    [(blend, off) for blend in ("paper", "unit_norm") for off in ("r", "alpha", "gate")]
    + [("gsam", "r"), ("gsam", "gate")],
)
@pytest.mark.parametrize("metric", ["euclidean", "adaptive"])
def test_a_traced_zero_is_jax_value_and_grad(blend, off, metric):
    """If a schedule is 0 or a gate is closed inside a compiled step, no bit changes; the penalty can still be on."""
    strength = {"r": 0.2, "alpha": 0.8}
    if off == "gate":
        strength["gate"] = window(1, 2)
    else:
        strength[off] = lambda step: 0.2 * step
    fn = jax.jit(value_and_grad(mlp_loss, Gnp(**strength, blend=blend, metric=metric)))
    at_0, at_1 = (fn(PARAMS_32, BATCH_32, step=jnp.asarray(step)) for step in (0, 1))
    g1 = plain(mlp_loss)(PARAMS_32, BATCH_32)
    assert_trees_equal(at_0, g1)
    assert ulps(at_1[1], {name: np.float64(u) for name, u in g1[1].items()}) > 1000


@pytest.mark.parametrize("blend", ["paper", "unit_norm", "decoupled"])
def test_a_traced_zero_hides_what_is_not_finite(blend):
    """At alpha = 0 an overflow at w + eps, which plain training would never see, does not reach u."""
    setting = Gnp(r=100.0, alpha=lambda step: 0.0 * step, blend=blend)
    result = penalize(lambda w, _: jnp.sum(jnp.exp(w)), setting)(jnp.full(2, 30.0), None, step=1)
    assert np.isinf(result.telemetry["grad_norm_perturbed"])
    assert_trees_equal(result.grad, jnp.exp(jnp.full(2, 30.0)))
    if result.displacement is not None:
        assert_trees_equal(result.displacement, jnp.zeros(2))


# SAM.


@given(seed=st.integers(0, 10**6))
@settings(max_examples=15, deadline=None)
def test_sam_is_a_value_of_three_blends(seed):
    """alpha = 1 of two blends and alpha = 0 of GSAM give bitwise g2."""
    rng = np.random.default_rng(seed)
    params = {name: jnp.asarray(rng.normal(size=w.shape), jnp.float32) for name, w in PARAMS.items()}
    first, *others = (fn(params, BATCH_32)[1] for fn in sam_by_blends())
    for other in others:
        assert_trees_equal(other, first)


@cache
def sam_by_blends():
    alphas = {"paper": 1.0, "unit_norm": 1.0, "gsam": 0.0}
    return [jax.jit(value_and_grad(mlp_loss, Gnp(r=0.2, alpha=a, blend=blend))) for blend, a in alphas.items()]


# The norm.


@cache
def accumulated():
    return jax.jit(penalize(mlp_loss, VARIANTS["paper"], num_accumulated=4))


@given(order=st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_the_order_of_microbatches_does_not_matter(order):
    """A sum of four gradients in another order moves by units in the last place, in g1, eps and u."""
    parts = {name: leaf.reshape(4, 4, -1)[np.asarray(order)].reshape(leaf.shape) for name, leaf in BATCH_32.items()}
    assert ulps(accumulated()(PARAMS_32, parts).grad, u_of_paper_in_numpy()) <= 4


@cache
def u_of_paper_in_numpy():
    return penalized(lambda params: mlp_loss_and_grad(params, BATCH_OF_16), PARAMS, 0.2, 0.8).u


@given(exponent=st.integers(-40, 40), metric=st.sampled_from(["euclidean", "adaptive"]), is_masked=st.booleans())
@settings(max_examples=30, deadline=None)
def test_eps_does_not_depend_on_the_scale_of_the_loss(exponent, metric, is_masked):
    """The perturbation has its length for any scale of the loss: bitwise for powers of two."""
    _, g1 = plain(mlp_loss)(PARAMS_32, BATCH_32)
    scaled = jax.tree.map(lambda g: g * 2.0**exponent, g1)
    mask = (lambda path: "kernel" in path) if is_masked else None
    moved, expected = (perturb(PARAMS_32, g, 0.2, Gnp(alpha=1, metric=metric, mask=mask)).params for g in (scaled, g1))
    assert_trees_equal(moved, expected)
    assert is_masked == np.array_equal(moved["head_bias_K"], PARAMS_32["head_bias_K"])


def test_a_tied_parameter_counts_once_in_the_norm():
    """A leaf that is used twice has one gradient, the sum of both, and counts once in the norm."""
    rng = np.random.default_rng(0)
    w_DxH, x_BxD = rng.normal(size=(4, 3)) / 2, rng.normal(size=(6, 4))

    def loss_fn(params, batch):
        """A linear autoencoder whose decoder is its encoder."""
        return jnp.mean(jnp.sum((batch @ params["tied"] @ params["tied"].T - batch) ** 2, axis=1))

    def gradient(w_DxH):
        error_BxD = x_BxD @ w_DxH @ w_DxH.T - x_BxD
        return 2 / len(x_BxD) * (x_BxD.T @ error_BxD + error_BxD.T @ x_BxD) @ w_DxH

    g1 = gradient(w_DxH)
    expected = gradient(w_DxH + 0.1 * g1 / np.linalg.norm(g1))
    with float64(True):
        result = penalize(loss_fn, Gnp(r=0.1, alpha=1.0))({"tied": jnp.asarray(w_DxH)}, jnp.asarray(x_BxD))
    np.testing.assert_allclose(result.telemetry["grad_norm"], np.linalg.norm(g1), rtol=1e-12)
    np.testing.assert_allclose(result.grad["tied"], expected, rtol=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_copies_and_shards_over_a_mesh_count_once_in_the_norm(set_mesh, metric):
    """eps has the same length over replicas on eight devices, over shards, and over a mixture."""
    g = {name: np.ones_like(w) for name, w in PARAMS.items()}
    eps = METRICS[metric](PARAMS, g, 0.5)
    set_mesh(fsdp=8)
    for specs in ([P()] * 4, [P(FSDP)] * 4, [P(), P(FSDP), P(), P(FSDP)]):
        where = dict(zip(PARAMS, map(sharding, specs), strict=True))
        params, direction = (jax.device_put({n: np.float32(w) for n, w in tree.items()}, where) for tree in (PARAMS, g))
        moved = jax.jit(partial(perturb, r=0.5, gnp=Gnp(alpha=1, metric=metric)))(params, direction).params
        assert ulps(moved, {name: w + eps[name] for name, w in PARAMS.items()}) <= 2  # For the norm, and for the sum.
        assert jax.tree.map(jax.typeof, moved) == jax.tree.map(jax.typeof, params)


# Numbers at the edge.


def bowl(params, batch):
    """The mean of c @ w**2 / 2 over examples c of factors, one for each entry of w: its gradient is mean(c) * w."""
    w = jnp.concatenate([params["kernel"].reshape(6), params["bias"]])
    return jnp.mean(jnp.sum(batch * w[None] ** 2, axis=1)) / 2


def fragile(params, batch):
    """The mean of c @ w, only at w = 1: elsewhere its gradient is 0, which hides a wrong perturbation."""
    w = jnp.concatenate([params["kernel"].reshape(6), params["bias"]])
    return jnp.mean(jnp.sum(jnp.where(w[None] == 1, batch, 0.0) * w[None], axis=1))


@cache
def penalized_by(name):
    return jax.jit(partial(penalize(fragile, VARIANTS[name]), **memory_for(VARIANTS[name], 0.5)))


@pytest.mark.slow
@given(
    name=st.sampled_from([name for name in VARIANTS if name not in ("momentum", "stale")]),
    place=st.integers(0, 7),
    wrong=st.sampled_from([np.nan, np.inf, -np.inf, 1e25]),
)
@settings(max_examples=80, deadline=None)
def test_a_wrong_gradient_is_never_hidden(name, place, wrong):
    """One NaN, one infinity or one overflow of the norm in g1 never gives a finite u, even if g2 is finite."""
    factors = np.ones((4, 8), np.float32)
    factors[:, place] = wrong
    u = penalized_by(name)(SMALL, factors).grad
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(u))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["momentum", "reused", "stale", "friendly"])
def test_a_wrong_memory_is_never_hidden(name, wrong):
    """A momentum or a direction from earlier steps that is not finite is not hidden either."""
    gnp, kind = VARIANTS[name], StepKind.REUSE if name == "reused" else StepKind.FULL
    u = penalize(bowl, gnp)(SMALL, jnp.ones((4, 8)), kind=kind, **memory_for(gnp, wrong)).grad
    assert not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(u))


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_averages_that_are_not_finite_leave_the_gate_open(wrong):
    """The variance overflows before the gradient does: the penalty is then on, and does not go off unseen."""
    gnp = VARIANTS["norm gate"]
    result = penalize(bowl, gnp)(SMALL, jnp.ones((4, 8)), **memory_for(gnp, wrong))
    assert result.telemetry["on"] == 1


def test_overflow_of_the_adaptive_norm_is_seen():
    """||w g|| can overflow where ||g|| does not: then u is NaN, and not the gradient at eps = 0."""
    params = jax.tree.map(lambda w: 1e10 * w, SMALL)
    result = penalize(bowl, VARIANTS["adaptive"])(params, jnp.full((4, 8), 1e5))
    assert np.isfinite(result.telemetry["grad_norm"])
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(result.grad))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_zero_gradient_gives_a_zero_step(name):
    """At a minimum the step is 0, for every variant and every kind: no division by a zero norm."""
    gnp, zero = VARIANTS[name], jax.tree.map(jnp.zeros_like, SMALL)
    batch = jnp.ones((4, 8))
    for kind in [StepKind.PLAIN, StepKind.FULL] + [StepKind.REUSE] * (gnp.direction == "reused"):
        result = penalize(bowl, gnp)(zero, batch, kind=kind, **memory_for(gnp, 0.0))
        assert_trees_equal(result.grad, zero)
        for tree in (result.displacement, result.state):
            assert all((leaf == 0).all() for leaf in jax.tree.leaves(tree))
        assert all(np.isfinite(value) for value in result.telemetry.values())
        assert result.telemetry["on"] == (kind != StepKind.PLAIN)
    moved = perturb(SMALL, zero, 0.2, gnp).params
    assert_trees_equal(moved, SMALL)


def test_groups_take_a_batch_of_numpy_arrays():
    """As `jax.value_and_grad` does, outside of jit too."""
    fn = value_and_grad(mlp_loss, VARIANTS["groups"])
    batch = {name: np.asarray(leaf) for name, leaf in BATCH_32.items()}
    assert_trees_equal(fn(PARAMS_32, batch), fn(PARAMS_32, BATCH_32))
