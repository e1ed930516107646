"""The largest eigenvalues of the Hessian and its trace, by matrix-free estimators of the library matfree.

n trainable parameters, K steps of Lanczos' method.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale import mesh
from gnp_scale.config import ConfigError, check
from gnp_scale.sharpness.flat import FLAT, Layout
from gnp_scale.sharpness.objective import Fixed, LossSum, Params, hessian_product


class Eigenvalues(NamedTuple):
    """The result of Lanczos' method."""

    largest: list[float]
    """In descending order; fewer than asked for, if the Hessian has no more that differ."""
    bounds: list[float]
    """For each of these: an eigenvalue of the Hessian is at most so far away, except for rounding."""
    lowest: float
    """An upper bound of the smallest eigenvalue, near it if the steps suffice."""


class Trace(NamedTuple):
    """The mean over random vectors, and its standard error."""

    mean: float
    error: float


def check_installed() -> None:
    """Raises ConfigError if matfree is missing."""
    try:
        import matfree  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "the eigenvalues of the Hessian need matfree: run pip install 'gnp-scale[sharpness]', or choose other "
            "measurements with --measure"
        ) from error


def eigenvalues(
    loss_sum: LossSum, params: Params, fixed: Fixed, is_free: Any, key: jax.Array, num_largest: int, num_steps: int
) -> Eigenvalues:
    """The `num_largest` largest eigenvalues of the Hessian, from `num_steps` products with it.

    Lanczos' method with full reorthogonalisation (matfree's `tridiag_sym`). An eigenvalue that occurs several times is
    found once. K vectors like the parameters are in memory, sharded over the devices.

    Args:
        loss_sum: The loss.
        params: Where the Hessian is taken.
        fixed: The examples.
        is_free: Pytree of bool: the parameters that are not frozen.
        key: Of the random first vector.
        num_largest: How many eigenvalues.
        num_steps: K; at most n.

    Raises:
        ConfigError: the Hessian is not finite.
    """
    small_KxK, residual = lanczos(loss_sum, is_free, num_steps)(params, fixed, key)
    return _ritz(np.asarray(small_KxK), float(residual), num_largest)


def lanczos(loss_sum: LossSum, is_free: Any, num_steps: int) -> Any:
    """A jitted function of (params, fixed, key): the tridiagonal matrix K x K, and the norm of the next vector."""
    from matfree import decomp

    tridiag = decomp.tridiag_sym(num_steps, reortho="full", custom_vjp=False)

    def small(start: jax.Array, product: Callable[[jax.Array], jax.Array]) -> tuple[jax.Array, jax.Array]:
        found = tridiag(product, start)
        return found.J_small, jnp.sqrt(jnp.sum(found.residual**2))

    @jax.jit
    def run(params: Params, fixed: Fixed, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        return _on_auto_axes(small, _normal(params, is_free, key), loss_sum, params, fixed)

    return run


def trace(
    loss_sum: LossSum, params: Params, fixed: Fixed, key: jax.Array, num_vectors: int, during: Callable[[], Any]
) -> Trace:
    """Hutchinson's estimate: the mean of v^T H v over vectors of random signs; the Hessian of frozen parameters is 0.

    Args:
        loss_sum: The loss.
        params: Where the Hessian is taken.
        fixed: The examples.
        key: Of the signs.
        num_vectors: How many vectors, at least 2.
        during: A context for each product.
    """
    from matfree import stochtrace

    def integrand(v: jax.Array, product: Callable[[jax.Array], jax.Array]) -> jax.Array:
        return stochtrace.monte_carlo_trace()(product, v)

    @jax.jit
    def run(params: Params, fixed: Fixed, key: jax.Array) -> jax.Array:
        return _on_auto_axes(integrand, draw(params, key, jax.random.rademacher), loss_sum, params, fixed)

    samples = []
    for number in range(num_vectors):
        with during():
            samples.append(float(run(params, fixed, jax.random.fold_in(key, number))))
    return Trace(float(np.mean(samples)), float(np.std(samples, ddof=1) / num_vectors**0.5))


def _ritz(small_KxK: np.ndarray, residual: float, num_largest: int) -> Eigenvalues:
    """Eigenvalues of the tridiagonal matrix, with bounds residual * |last entry of the eigenvector|.

    When the vectors span an invariant space, the method ends, and matfree's later entries are not finite.
    """
    num = int(np.cumprod(np.isfinite(np.diag(small_KxK))).sum())
    check(num > 0, "the Hessian is not finite: the network has diverged, so measure an earlier run")
    values_K, vectors_KxK = np.linalg.eigh(small_KxK[:num, :num].astype(np.float64))
    rest = residual if num == len(small_KxK) else 0.0
    bounds_K = rest * np.abs(vectors_KxK[-1])
    largest = slice(None, -num_largest - 1, -1)
    return Eigenvalues(values_K[largest].tolist(), bounds_K[largest].tolist(), float(values_K[0]))


def _on_auto_axes(fn: Callable[..., Any], v: Params, loss_sum: LossSum, params: Params, fixed: Fixed) -> Any:
    """`fn(v, product)` with v and `product(v)` = H v as flat vectors, where the compiler chooses shardings.

    For matfree a vector is one array. If it got a tree and flattened it, each device would hold all of the vectors of
    Lanczos' method.
    """
    layout = Layout.of(params)

    def of_flat(v: jax.Array) -> jax.Array:
        return layout.flatten(hessian_product(loss_sum, params, layout.unflatten(v), fixed))

    def product(v: jax.Array) -> jax.Array:
        as_explicit: Any = jax.sharding.explicit_axes(of_flat, in_sharding=(FLAT,))
        return as_explicit(jax.lax.with_sharding_constraint(v, FLAT))

    run: Any = jax.sharding.auto_axes(lambda v: fn(v, product), out_sharding=mesh.REPLICATED)
    return run(layout.flatten(v))


def _normal(params: Params, is_free: Any, key: jax.Array) -> Params:
    draws = draw(params, key, jax.random.normal)
    return jax.tree.map(lambda x, is_free: x if is_free else jnp.zeros_like(x), draws, is_free)


def draw(params: Params, key: jax.Array, sample: Callable[..., jax.Array]) -> Params:
    """A random tree like `params`, the same on any mesh; `sample(key, shape, dtype)` draws a leaf."""
    leaves, structure = jax.tree.flatten(params)
    keys = [jax.random.fold_in(key, number) for number in range(len(leaves))]
    drawn = [
        jax.sharding.reshard(sample(key, w.shape, w.dtype), jax.typeof(w).sharding.spec)
        for key, w in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, drawn)
