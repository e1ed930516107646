"""The method in a loop of one's own: meshes, settings and parameters that the trainer never has."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from mlp import BATCH_OF_16, PARAMS, mlp_loss, on_device

from gnp_scale.gnp import Gnp, NormGate, StepKind, every, penalize, penalize_updates, value_and_grad
from gnp_scale.mesh import P

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture
def w():
    return on_device(PARAMS, "float32")


@pytest.fixture
def batch():
    return on_device(BATCH_OF_16, "float32")


def nothing(step):
    return 0.0 * step


def assert_close(got, expected, rtol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol, atol=1e-6), got, expected)


def line_loss(w_D, x_BxD):
    return jnp.mean(jnp.sin(x_BxD @ w_D) ** 2)


@pytest.mark.parametrize(("shape", "names"), [((4,), ("data",)), ((4, 1), ("data", "model")), ((2, 2), ("data", "m"))])
def test_groups_on_an_axis_of_any_mesh_are_those_computed_one_after_the_other(shape, names):
    """Also on a mesh of one axis, where no other remains inside."""
    w_D, x_BxD = jnp.arange(1.0, 6.0) / 5, jax.random.normal(jax.random.key(0), (16, 5))
    gnp = Gnp(r=0.5, alpha=0.8, perturb_groups=shape[0])
    expected = penalize(line_loss, gnp)(w_D, x_BxD)
    mesh = jax.make_mesh(shape, names, devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        params = jax.device_put(w_D, NamedSharding(mesh, P()))
        examples = jax.device_put(x_BxD, NamedSharding(mesh, P("data")))
        got = jax.jit(penalize(line_loss, gnp, group_axis="data"))(params, examples)
        with pytest.raises(ValueError, match=f"perturb_groups=8 and {shape[0]} shards of 'data'"):
            penalize(line_loss, Gnp(alpha=1, perturb_groups=8), group_axis="data")(params, examples)
    assert_close(got.grad, expected.grad)


def test_groups_and_a_gate_give_outputs_of_one_type(w, batch):
    """A count, and a loss in bfloat16, are means over the groups where the gate is open."""

    def loss_fn(params, batch):
        return mlp_loss(params, batch).astype(jnp.bfloat16), jnp.sum(batch["x_BxD"][:, 0] > 0)

    fn = value_and_grad(loss_fn, Gnp(alpha=0.5, perturb_groups=2, gate=every(2)), has_aux=True)
    count = np.sum(BATCH_OF_16["x_BxD"][:, 0] > 0)
    for step, expected in ((0, count / 2), (1, count)):
        (loss, number), _ = fn(w, batch, step=step)
        assert (loss.dtype, number.dtype, number) == (jnp.float32, jnp.float32, expected)


@pytest.mark.parametrize("strength", ["r", "alpha", "lam"])
def test_where_a_schedule_is_zero_the_gradient_is_of_all_examples(strength, w, batch):
    other = {} if strength == "lam" else {"alpha": 0.5}
    gnp = Gnp(**{"r": 0.1} | other | {strength: nothing}, ascent_fraction=0.5)
    jax.tree.map(
        np.testing.assert_array_equal,
        value_and_grad(mlp_loss, gnp)(w, batch, step=3),
        value_and_grad(mlp_loss, Gnp(alpha=0.0))(w, batch),
    )


def test_numbers_of_python_and_numpy_are_taken_as_jax_takes_them(w, batch):
    def loss_fn(batch, params):
        return mlp_loss(jax.tree.map(lambda x: params["scale"] * x, params["w"]), batch)

    params, place = {"w": w, "scale": 0.5}, np.int64(1)
    expected = jax.value_and_grad(loss_fn, 1)(batch, params)
    assert_close(value_and_grad(loss_fn, Gnp(alpha=0.0), argnums=place)(batch, params), expected)
    loss, u = value_and_grad(loss_fn, Gnp(r=0.1, alpha=0.5), argnums=place)(batch, params)
    as_arrays = {"w": w, "scale": jnp.float32(0.5)}
    assert_close((loss, u), value_and_grad(loss_fn, Gnp(r=0.1, alpha=0.5), argnums=1)(batch, as_arrays))


def test_the_average_of_friendly_rests_while_the_penalty_is_off(w, batch):
    gnp = Gnp(r=nothing, alpha=0.5, direction="friendly")
    before = jax.tree.map(jnp.ones_like, w)
    result = penalize(mlp_loss, gnp)(w, batch, step=1, state=before)
    jax.tree.map(np.testing.assert_array_equal, result.state, before)


@pytest.mark.parametrize("kind", [StepKind.FULL, StepKind.REUSE])
def test_a_direction_is_neither_reused_nor_kept_where_r_is_zero(kind, w, batch):
    """Whatever an earlier step has left. It would be the rounding of two passes at the same place."""
    gnp = Gnp(r=lambda step: 0.1 * step, alpha=0.3, direction="reused")
    result = penalize(mlp_loss, gnp)(w, batch, step=0, state=w, kind=kind)
    assert_close(result.grad, jax.grad(mlp_loss)(w, batch))
    assert {name: float(result.telemetry[name]) for name in ("on", "r", "alpha", "lambda")} == dict.fromkeys(
        ("on", "r", "alpha", "lambda"), 0
    )
    kept = sum(float(jnp.sum(jnp.abs(x))) for x in jax.tree.leaves(result.state))
    assert (kept == 0) == (kind == StepKind.FULL)


@pytest.mark.parametrize(
    "gnp",
    [
        Gnp(alpha=0.0, direction="reused"),
        *(Gnp(r=0.0, alpha=1.0, direction=d) for d in ("reused", "stale", "friendly")),
    ],
    ids=lambda gnp: f"{gnp.direction}, r {gnp.r}",
)
def test_without_the_penalty_no_direction_needs_memory(gnp, w, batch):
    assert gnp.init_state(w) is None
    assert penalize(mlp_loss, gnp)(w, batch).state is None


def test_a_radius_that_is_nan_is_not_hidden_where_a_direction_is_reused(w, batch):
    gnp = Gnp(r=lambda step: jnp.nan * step, alpha=0.5, direction="reused")
    result = penalize(mlp_loss, gnp)(w, batch, step=1, state=w, kind=StepKind.REUSE)
    assert all(np.all(np.isnan(x)) for x in jax.tree.leaves(result.grad))


@pytest.mark.parametrize(("threshold", "length", "alpha"), [(-5.0, 0.01, 0.8), (5.0, 0.0, 0.0)])
def test_a_norm_gate_tells_the_length_that_the_gradient_decides(threshold, length, alpha, w, batch):
    gnp = Gnp(r=0.2, alpha=0.8, radius="loss", max_r=0.01, norm_gate=NormGate(threshold))
    state = {"mean": jnp.float32(1.0), "variance": jnp.float32(1.0)}
    found = penalize(mlp_loss, gnp)(w, batch, state=state).telemetry
    values = [found[name] for name in ("r", "alpha", "lambda", "on")]
    np.testing.assert_allclose(values, [length, alpha, length * alpha, alpha > 0], rtol=1e-6)


def test_a_strength_that_is_an_array_of_zero_is_plain_training_in_a_chain_too(w, batch):
    gnp = Gnp(r=0.1, alpha=jnp.float32(0), blend="unit_norm")
    g1, transform = jax.grad(mlp_loss)(w, batch), penalize_updates(gnp)
    u, _ = transform.update(g1, transform.init(w), w, grad_fn=lambda params: jax.grad(mlp_loss)(params, batch))
    jax.tree.map(np.testing.assert_array_equal, u, g1)


def test_the_kinds_of_no_step_and_of_a_range():
    assert Gnp(alpha=1).step_kinds(np.arange(0)).size == 0
    assert Gnp(alpha=1, gate=every(2)).step_kinds(range(3)).tolist() == [1, 0, 1]
