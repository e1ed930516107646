"""The loss around a minimum: rises and planes by their definitions and in closed form, on one device and on eight.

B examples, D inputs, R radii, T groups.
"""

import contextlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixed_losses import W, all_free, closed_form, placed, quadratic, quadratic_sum

from gnp_scale.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.augment import normalise
from gnp_scale.mesh import P, make_mesh, sharding
from gnp_scale.sharpness import examples, landscape, objective, rise
from gnp_scale.sharpness.objective import Fixed
from gnp_scale.sharpness.progress import told
from gnp_scale.sharpness.settings import Settings
from gnp_scale.training.setup import Task

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(params=[(1, 1, 1), (2, 2, 2)], ids=str)
def on_mesh(request, set_mesh):
    return set_mesh(*request.param)


def test_the_rise_is_that_of_a_quadratic_loss_in_closed_form(on_mesh):
    """Also of groups, each along its own gradient, with rows that do not count."""
    w, radii = W, (0.01, 0.1, 2.0)
    used, fixed = quadratic(num_groups=3, num=5)
    params, radius_R = placed({"w": w}, {"w": P()}), jnp.array(radii)
    found = jax.jit(partial(rise.worst_case, quadratic_sum))(params, fixed, radius_R)
    loss, grad_norm, rises = closed_form(used.reshape(-1, 4, 4), w, radii)
    loss_found = jax.jit(partial(objective.value, quadratic_sum))(params, fixed)
    np.testing.assert_allclose((loss_found, found.grad_norm), (loss, grad_norm), rtol=1e-5)
    np.testing.assert_allclose(found.rises, rises, rtol=1e-3)
    mean_R, error_R = jax.jit(partial(rise.mean_over_groups, quadratic_sum))(params, fixed, radius_R)
    rises_TxR = [closed_form(group, w, radii)[2] for group in used]
    np.testing.assert_allclose(mean_R, np.mean(rises_TxR, axis=0), rtol=1e-3)
    np.testing.assert_allclose(error_R, np.std(rises_TxR, axis=0, ddof=1) / 3**0.5, rtol=1e-3)


def test_a_group_without_usable_examples_does_not_count(set_mesh):
    set_mesh()
    _, fixed = quadratic(num_groups=3, num=8)
    fixed.parts["mask"] = fixed.parts["mask"].at[1].set(0)
    params, radius_R = placed({"w": W}, {"w": P()}), jnp.array([0.1])
    both = Fixed(None, {name: x[np.array([0, 2])] for name, x in fixed.parts.items()})
    of_groups = jax.jit(partial(rise.mean_over_groups, quadratic_sum))
    for with_it, without in zip(of_groups(params, fixed, radius_R), of_groups(params, both, radius_R), strict=True):
        np.testing.assert_allclose(with_it, without, rtol=1e-6)


def test_a_smaller_last_group_does_not_count(set_mesh):
    """Its m is another one, and it would weigh as much as a whole group."""
    set_mesh()
    _, fixed = quadratic(num_groups=3, num=8)
    mask = np.asarray(fixed.parts["mask"]).copy()
    mask[2, 1:] = 0
    fixed.parts["mask"] = jax.device_put(mask, fixed.parts["mask"].sharding)
    params, radius_R = placed({"w": W}, {"w": P()}), jnp.array([0.1])
    whole = Fixed(None, {name: x[:2] for name, x in fixed.parts.items()})
    of_groups = jax.jit(partial(rise.mean_over_groups, quadratic_sum))
    for with_it, without in zip(of_groups(params, fixed, radius_R), of_groups(params, whole, radius_R), strict=True):
        np.testing.assert_allclose(with_it, without, rtol=1e-6)


def test_a_direction_has_the_norms_of_the_filters(on_mesh):
    """Output channels of a dense kernel and heads of an attention kernel; biases and frozen kernels stay."""
    draws = np.random.default_rng(2)
    params = {
        "dense": {"kernel": draws.standard_normal((6, 4)), "bias": draws.standard_normal(4)},
        "attention": {"query": {"kernel": draws.standard_normal((6, 2, 3))}},
        "frozen": {"kernel": draws.standard_normal((6, 4))},
    }
    params = jax.tree.map(lambda x: jax.device_put(x.astype(np.float32), sharding(P())), params)
    is_free = jax.tree.map(lambda _: True, params) | {"frozen": {"kernel": False}}
    found = jax.jit(lambda params: landscape.direction(params, is_free, jax.random.key(0)))(params)
    for names in (("dense",), ("attention", "query")):
        w, d = (
            tree[names[0]]["kernel"] if len(names) == 1 else tree[names[0]][names[1]]["kernel"]
            for tree in (params, found)
        )
        np.testing.assert_allclose(np.linalg.norm(d, axis=0), np.linalg.norm(w, axis=0), rtol=1e-5)
        assert abs(np.corrcoef(np.ravel(d), np.ravel(w))[0, 1]) < 0.9
    assert not np.any(found["dense"]["bias"])
    assert not np.any(found["frozen"]["kernel"])


def test_the_plane_has_the_first_direction_in_columns(set_mesh):
    """A quadratic loss at each place, by the definition."""
    set_mesh()
    used, fixed = quadratic(num_groups=2, num=8)
    params = {"a": {"kernel": np.array([[1.0], [-2.0]])}, "b": {"kernel": np.array([[0.5], [3.0]])}}
    params = jax.tree.map(lambda x: jax.device_put(x.astype(np.float32), sharding(P())), params)

    def loss_sum(params, shared, part):
        return quadratic_sum({"w": jnp.concatenate([params["a"]["kernel"], params["b"]["kernel"]])[:, 0]}, shared, part)

    key, step_A = jax.random.key(0), np.array([-1.0, 0.0, 0.5])
    found = landscape.plane(loss_sum, params, fixed, all_free(params), key, step_A, contextlib.nullcontext)
    w, d, e = (
        np.concatenate([tree["a"]["kernel"], tree["b"]["kernel"]])[:, 0].astype(np.float64)
        for tree in (
            params,
            *(landscape.direction(params, all_free(params), jax.random.fold_in(key, n)) for n in (0, 1)),
        )
    )
    expected = [[closed_form(used.reshape(-1, 4, 4), w + a * d + b * e, ())[0] for a in step_A] for b in step_A]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


CONFIG = Config(
    data=DataConfig(batch_size=16, eval_batch_size=16),
    model=ModelConfig("vit_mu", patch_size=4, depth=1, width=16, num_heads=2, dropout=0.5),
    optim=OptimConfig(frozen=("embed*",)),
    train=TrainConfig(label_smoothing=0.1),
)


def test_the_examples_are_the_same_in_parts_of_any_size_on_any_mesh():
    """50 of the training set, in parts of 16 and of 7, which 4 devices cannot share without rows that do not count."""
    found = []
    for shape, size in (((1, 1, 1), 16), ((2, 2, 2), 16), ((2, 2, 2), 7)):
        with jax.set_mesh(make_mesh(MeshConfig(*shape), jax.devices()[: np.prod(shape)])):
            fixed = examples.read(Task.of(CONFIG), {}, 50, size, 3, contextlib.nullcontext)
            assert set(np.asarray(fixed.parts["mask"]).sum(axis=1)) == {size, 50 % size}
            counts = np.asarray(fixed.parts["mask"]).reshape(-1) > 0
            found.append(np.asarray(fixed.parts["image"]).reshape(-1, 8, 8, 1)[counts])
    assert len(np.unique(found[0], axis=0)) == 50
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.slow
def test_the_loss_is_a_fixed_function_with_the_labels_of_the_run(set_mesh):
    """Dropout does not act, labels are smooth, and frozen parameters have no gradient and no curvature."""
    set_mesh()
    task = Task.of(CONFIG)
    draws = np.random.default_rng(5)
    params = jax.tree.map(lambda x: 0.1 * draws.standard_normal(x.shape, np.float32), task.abstract_state().params)
    params = jax.device_put(params, jax.tree.map(lambda x: x.sharding, task.abstract_state().params))
    fixed = examples.read(task, {}, 32, 16, 0, contextlib.nullcontext)
    loss_sum = examples.make_loss_sum(task)

    @jax.jit
    def measured(w, fixed):
        logits_TxBxK = jax.lax.map(
            lambda image: task.model.network(w, {})(normalise(image, task.dataset), train=False), fixed.parts["image"]
        )
        product = objective.hessian_product(loss_sum, w, w, fixed)
        return logits_TxBxK, objective.value(loss_sum, w, fixed), objective.gradient(loss_sum, w, fixed), product

    logits_TxBxK, loss, grad, product = jax.device_get(measured(params, fixed))
    target_TxBxK = 0.9 * np.eye(10)[fixed.parts["label"]] + 0.01
    log_share_TxBxK = logits_TxBxK - np.logaddexp.reduce(logits_TxBxK, axis=-1, keepdims=True)
    np.testing.assert_allclose(loss, -np.mean(np.sum(target_TxBxK * log_share_TxBxK, axis=-1)), rtol=1e-5)
    assert not any(np.any(x) for x in jax.tree.leaves([grad["embed"], product["embed"]]))
    assert all(np.any(x) for x in jax.tree.leaves([grad["head"], product["head"]]))
    assert examples.free_mask(params, task)["embed"]["kernel"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measures": ("rises",)}, "--measure has 'rises': did you mean rise"),
        ({"radii": (0.1, -1.0)}, "--radii is 0.1,-1: give numbers above 0"),
        ({"radii": (float("inf"),)}, "--radii is inf"),
        ({"radii": (1e39,)}, r"--radii is 1e\+39: give numbers above 0"),
        ({"radii": (0.05, 0.05000001)}, "--radii is 0.05,0.05: give each radius once"),
        ({"measures": ("rise",), "grid_size": 5}, "--grid has no effect, because plane or trajectory is not measured"),
        ({"measures": (), "radii": (0.3,)}, "--radii has no effect, because rise is not measured"),
        ({"num_eigenvalues": 9, "num_lanczos_steps": 8}, "make --lanczos-steps larger"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**settings)


def test_a_measurement_says_how_far_it_is_and_how_long_it_will_take(capsys):
    """Units of 4 s after a first one of 100 s, which compiles: a line at most every ten seconds, none at the end."""
    now_s = [0.0]
    during = told(contextlib.nullcontext, "the plane", 9, "rows", clock=lambda: now_s[0])
    for seconds in (100, *(4,) * 8):
        with during():
            now_s[0] += seconds
    assert capsys.readouterr().err.splitlines() == [
        "measuring the plane: 9 rows",
        "the plane: 2 of 9 rows, about 28 s left",
        "the plane: 5 of 9 rows, about 16 s left",
        "the plane: 8 of 9 rows, about 4 s left",
    ]
