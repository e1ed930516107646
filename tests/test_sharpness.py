"""Sharpness and robustness: each number against its definition, in float64 or in closed form, on one device and eight.

B examples, D inputs, K classes, n parameters, R radii, V severities.
"""

import contextlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from mlp import float64, mlp_loss
from oracles import mlp_batch, mlp_params

from gnp_scale.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.mesh import BATCH, P, gather, make_mesh, sharding
from gnp_scale.sharpness import corruptions, examples, landscape, objective, rise, robustness, spectrum
from gnp_scale.sharpness.objective import Fixed
from gnp_scale.sharpness.rounding import rounded
from gnp_scale.sharpness.settings import Settings
from gnp_scale.training.setup import Task

pytestmark = pytest.mark.usefixtures("unoptimized")

SPECS = {
    "hidden_kernel_DxH": P("fsdp", "tensor"),
    "hidden_bias_H": P("fsdp"),
    "head_kernel_HxK": P("tensor", "fsdp"),
    "head_bias_K": P(),
}
BATCH_OF_24 = mlp_batch(24)


@pytest.fixture(params=[(1, 1, 1), (2, 2, 2)], ids=str)
def on_mesh(request, set_mesh):
    return set_mesh(*request.param)


def mlp_sum(params, shared, part):
    """A label of zeros has the loss 0."""
    shown = {name: jnp.where(part["mask"][:, None] > 0, x, 0) for name, x in part.items() if name != "mask"}
    whole = jax.tree.map(partial(gather, axes=("fsdp", "tensor")), params)
    return mlp_loss(whole, shown) * len(part["mask"])


def placed(leaves, specs):
    return {name: jax.device_put(leaf.astype(np.float32), sharding(specs[name])) for name, leaf in leaves.items()}


def in_parts(arrays, size, num=None):
    """`Fixed` in parts of `size` rows, of which the first `num` count in each."""
    parts = {name: x.reshape(-1, size, *x.shape[1:]) for name, x in arrays.items()}
    num_parts = len(next(iter(parts.values())))
    parts["mask"] = np.broadcast_to(np.arange(size) < (num or size), (num_parts, size))
    specs = {name: P(None, BATCH, *(None,) * (x.ndim - 2)) for name, x in parts.items()}
    return Fixed(None, placed(parts, specs))


@pytest.fixture
def mlp(on_mesh):
    return placed(mlp_params(), SPECS), in_parts(BATCH_OF_24, 8)


@pytest.fixture(scope="module")
def hessian():
    """Of the mean loss over the 24 examples, in float64 (n x n), in the order of the leaves."""
    with float64():
        flat, unravel = ravel_pytree(jax.tree.map(jnp.asarray, mlp_params()))
        batch = jax.tree.map(jnp.asarray, BATCH_OF_24)
        return np.asarray(jax.hessian(lambda w: mlp_loss(unravel(w), batch))(flat))


def all_free(params):
    return jax.tree.map(lambda _: True, params)


def test_the_eigenvalues_are_those_of_the_whole_hessian(mlp, hessian):
    """In float64. The bounds hold: with 12 steps the third eigenvalue is not found, and the bound says so."""
    pytest.importorskip("matfree")
    params, fixed = mlp
    exact = np.sort(np.linalg.eigvalsh(hessian))[::-1]
    find = partial(spectrum.eigenvalues, mlp_sum, params, fixed, all_free(params), jax.random.key(0), 3)
    found = find(60)
    np.testing.assert_allclose(found.largest, exact[:3], rtol=1e-5)
    np.testing.assert_allclose(found.lowest, exact[-1], rtol=1e-3)
    early = find(12)
    distances = [np.abs(exact - value).min() for value in early.largest]
    assert np.all(distances <= np.array(early.bounds) + 1e-6 * exact[0])
    assert early.bounds[2] > 1e-3 * exact[0]


def test_the_trace_is_the_mean_of_its_samples_near_the_exact_one(mlp, hessian):
    pytest.importorskip("matfree")
    params, fixed = mlp
    found = spectrum.trace(mlp_sum, params, fixed, jax.random.key(0), 16, contextlib.nullcontext)
    keys = [jax.random.fold_in(jax.random.key(0), number) for number in range(16)]
    vectors = [ravel_pytree(jax.device_get(spectrum.draw(params, key, jax.random.rademacher)))[0] for key in keys]
    samples = [v @ hessian @ v for v in np.asarray(vectors, np.float64)]
    np.testing.assert_allclose(found, (np.mean(samples), np.std(samples, ddof=1) / 4), rtol=1e-4)
    assert abs(found.mean - np.trace(hessian)) < 3 * found.error


def test_the_vectors_of_lanczos_are_divided_among_the_devices(set_mesh):
    """30 vectors of a kernel take 30 times its 64 KiB; each of 8 devices has less than a third of that."""
    pytest.importorskip("matfree")
    set_mesh(2, 2, 2)
    w = jax.device_put(np.ones((128, 128), np.float32), sharding(P("fsdp", "tensor")))
    fixed = in_parts({"x": np.ones((8, 128))}, 8)

    def loss_sum(params, shared, part):
        y = part["x"] @ jax.sharding.reshard(params["w"], P())
        return jnp.sum(y**4)

    params = {"w": w}
    lowered = spectrum.lanczos(loss_sum, all_free(params), 30).lower(params, fixed, jax.random.key(0))
    memory = lowered.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 30 * w.nbytes / 3


def test_a_network_that_has_diverged_has_no_eigenvalues(set_mesh):
    pytest.importorskip("matfree")
    set_mesh()
    params, fixed = {name: x * np.nan for name, x in placed(mlp_params(), SPECS).items()}, in_parts(BATCH_OF_24, 8)
    with pytest.raises(ConfigError, match="is not finite"):
        spectrum.eigenvalues(mlp_sum, params, fixed, all_free(params), jax.random.key(0), 1, 3)


def test_an_invariant_space_ends_the_method(set_mesh):
    """The Hessian has the eigenvalues 2 and 0 only."""
    pytest.importorskip("matfree")
    set_mesh()
    fixed = in_parts({"x": np.eye(3)[[0, 0, 0]]}, 3)

    def loss_sum(params, shared, part):
        return jnp.sum((part["x"] @ params["w"]) ** 2)

    params = placed({"w": np.zeros(3)}, {"w": P()})
    find = partial(spectrum.eigenvalues, loss_sum, params, fixed, all_free(params), jax.random.key(0))
    found = find(1, 3)
    np.testing.assert_allclose((found.largest[0], found.lowest), (2, 0), atol=1e-6)


def test_without_matfree_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(ConfigError, match=r"pip install 'gnp-scale\[sharpness\]', or choose other .* --measure"):
        spectrum.check_installed()


W = np.array([1.0, -2.0, 0.5, 3.0])


def quadratic_sum(params, shared, part):
    """Of |A_b w|^2 / 2."""
    y_BxD = jnp.einsum("bij,j->bi", part["a"], params["w"])
    return jnp.sum(jnp.where(part["mask"][:, None] > 0, y_BxD**2, 0.0)) / 2


def closed_form(matrices_BxDxD, w, radii):
    """(L, |g|, r |g| + r^2 g^T H g / (2 |g|^2)) of the mean loss."""
    hessian = np.mean([a.T @ a for a in matrices_BxDxD], axis=0)
    grad = hessian @ w
    curvature = grad @ hessian @ grad / (grad @ grad)
    return w @ hessian @ w / 2, np.linalg.norm(grad), [r * np.linalg.norm(grad) + r**2 / 2 * curvature for r in radii]


def quadratic(num_groups, num):
    """Random matrices in groups of 8 rows, of which `num` count."""
    draws = np.random.default_rng(1).standard_normal((num_groups * 8, 4, 4))
    return draws.reshape(num_groups, 8, 4, 4)[:, :num], in_parts({"a": draws}, 8, num)


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


def rounded_in_numpy(w, axes, num_bits):
    highest = 2 ** (num_bits - 1) - 1
    scale = np.abs(w).max(axis=axes, keepdims=True) / np.float32(highest)
    with np.errstate(invalid="ignore"):
        return np.nan_to_num(np.rint(w / scale) * scale)


@pytest.mark.parametrize("num_bits", [8, 4])
def test_kernels_are_rounded_for_each_output_channel(num_bits):
    draws = np.random.default_rng(3)
    dense, query = (draws.standard_normal(shape).astype(np.float32) for shape in ((64, 5), (6, 2, 8)))
    dense[:, 2] = 0
    params = {"dense": {"kernel": dense, "bias": dense[0]}, "attention": {"query": {"kernel": query}}}
    found = jax.jit(partial(rounded, num_bits=num_bits))(params)
    np.testing.assert_allclose(found["dense"]["kernel"], rounded_in_numpy(dense, 0, num_bits), atol=1e-6)
    np.testing.assert_allclose(found["attention"]["query"]["kernel"], rounded_in_numpy(query, 0, num_bits), atol=1e-6)
    np.testing.assert_array_equal(found["dense"]["bias"], dense[0])
    assert len(np.unique(np.round(found["dense"]["kernel"][:, 0], 6))) <= 2**num_bits - 1


@pytest.fixture(scope="module")
def images():
    """Photographs of 3 channels with smooth parts and noise, not square."""
    draws, (row, column) = np.random.default_rng(4), np.mgrid[:48, :64]
    smooth_HxWxC = np.stack([90 + row, 120 + column - row, 60 + row + column // 2], axis=2)
    return np.clip(smooth_HxWxC + draws.integers(-20, 20, (4, 48, 64, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", corruptions.KINDS)
def test_a_corruption_grows_with_its_severity_from_none(kind, images):
    """An image depends on nothing but itself and its number."""

    @jax.jit
    def change(image, severity, number_B):
        return corruptions.corrupt(kind, image, severity, robustness.keys(0, number_B, kind))

    results = [np.asarray(change(images, severity, jnp.arange(4))) for severity in corruptions.SEVERITIES]
    np.testing.assert_array_equal(results[0], images)
    distances_VxB = [((result - images.astype(float)) ** 2).mean(axis=(1, 2, 3)) for result in results]
    assert np.all(np.diff(distances_VxB, axis=0) >= 0)
    assert np.all(distances_VxB[1] > 0)
    assert np.all(distances_VxB[5] > distances_VxB[1])
    np.testing.assert_array_equal(change(images[2:3], 3, jnp.arange(2, 3)), results[3][2:3])


def test_corruptions_are_those_of_their_definitions(images):
    """Away from the limits of pixels: the brightness, the contrast, and the number of different rows and columns."""
    change = jax.jit(corruptions.corrupt, static_argnums=0)
    key_B = robustness.keys(0, jnp.arange(4), "contrast")
    x = images.astype(np.float64) / 255
    mean = x.mean(axis=(1, 2), keepdims=True)
    by_hand = {"contrast": (mean + 0.2 * (x - mean)), "brightness": np.clip(x + 0.3, 0, 1)}
    for kind, expected in by_hand.items():
        np.testing.assert_allclose(np.asarray(change(kind, images, 3, key_B)) / 255, expected, atol=0.5 / 255 + 1e-6)
    pixelated = np.asarray(change("pixelate", images, 5, key_B))
    blocks = x.reshape(4, 12, 4, 16, 4, 3).mean(axis=(2, 4)).repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_allclose(pixelated / 255, blocks, atol=0.5 / 255 + 1e-6)


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


def test_the_loss_is_a_fixed_function_with_the_labels_of_the_run(set_mesh):
    """Dropout does not act, labels are smooth, and frozen parameters have no gradient and no curvature."""
    set_mesh()
    task = Task.of(CONFIG)
    params = jax.tree.map(lambda w: w + 0.1, task.init_state().params)
    fixed = examples.read(task, {}, 32, 16, 0, contextlib.nullcontext)
    loss_sum = examples.make_loss_sum(task)
    image, label = (
        np.asarray(fixed.parts[name]).reshape(32, *fixed.parts[name].shape[2:]) for name in ("image", "label")
    )
    pixel = (image.astype(np.float32) / 255 - np.float32(task.dataset.mean)) / np.float32(task.dataset.std)
    logits = jax.jit(lambda params: task.model.network(params, {})(pixel, train=False))(params)
    target = 0.9 * np.eye(10)[label] + 0.01
    expected = -np.mean(np.sum(target * np.asarray(jax.nn.log_softmax(logits)), axis=1))
    loss, grad, product = jax.jit(
        lambda w, v: (
            objective.value(loss_sum, w, fixed),
            objective.gradient(loss_sum, w, fixed),
            objective.hessian_product(loss_sum, w, v, fixed),
        )
    )(params, params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert not np.any(ravel_pytree([grad["embed"], product["embed"]])[0])
    assert all(np.any(x) for x in jax.tree.leaves(grad["blocks"]))
    assert examples.free_mask(params, task)["embed"]["kernel"] is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measures": ("rises",)}, "--measure has 'rises': did you mean rise"),
        ({"radii": (0.1, -1.0)}, "--radii is 0.1,-1: give numbers above 0"),
        ({"radii": (float("inf"),)}, "--radii is inf"),
        ({"num_eigenvalues": 9, "num_lanczos_steps": 8}, "make --lanczos-steps larger"),
    ],
)
def test_settings_without_meaning_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Settings(**settings)
