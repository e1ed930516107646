"""Eigenvalues and trace of the Hessian: those of the whole matrix in float64, on one device and on eight."""

import contextlib
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fixed_losses import SPECS, all_free, in_parts, mlp_sum, placed
from jax.flatten_util import ravel_pytree
from mlp import float64, mlp_loss
from oracles import mlp_batch, mlp_params

from gnp_scale.config import ConfigError
from gnp_scale.mesh import P, sharding
from gnp_scale.sharpness import spectrum

pytestmark = pytest.mark.usefixtures("unoptimized")

BATCH_OF_24 = mlp_batch(24)


@pytest.fixture(params=[(1, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str)
def on_mesh(request, set_mesh):
    return set_mesh(*request.param)


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
    """30 vectors of a kernel take 30 times its 64 KiB. Each of 8 devices has two copies of its eighth, not all."""
    pytest.importorskip("matfree")
    set_mesh(1, 4, 2)
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
    found = spectrum.eigenvalues(loss_sum, params, fixed, all_free(params), jax.random.key(0), 1, 3)
    np.testing.assert_allclose((found.largest[0], found.lowest), (2, 0), atol=1e-6)


def test_a_hessian_of_zeros_has_one_eigenvalue(set_mesh):
    """As that of a network with a single class: the others that were asked for are left out."""
    pytest.importorskip("matfree")
    set_mesh()
    params = placed({"w": np.zeros(3)}, {"w": P()})
    fixed = in_parts({"x": np.eye(3)}, 3)

    def loss_sum(params, shared, part):
        return jnp.sum(part["x"] @ params["w"])

    found = spectrum.eigenvalues(loss_sum, params, fixed, all_free(params), jax.random.key(0), 3, 3)
    assert (found.largest, found.bounds, found.lowest) == ([0], [0], 0)


def test_without_matfree_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matfree", None)
    with pytest.raises(ConfigError, match=r"pip install 'gnp-scale\[sharpness\]', or choose other .* --measure"):
        spectrum.check_installed()
