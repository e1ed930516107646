"""The path of a run through its checkpoints, and the loss in the plane of the two directions in which it went furthest.

Lengths are those of filter normalisation (arXiv 1712.09913): a vector has the length 1 if a filter changes by its own
norm, as a root mean square over all filters. Parameters that are no kernels do not count.

T checkpoints, N numbers of a vector, A steps along each direction.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.checkpoint import load_each
from gnp_scale.config import check
from gnp_scale.mesh import P, on_mesh
from gnp_scale.run.messages import announce
from gnp_scale.run.store import Folder
from gnp_scale.sharpness import progress, statistics
from gnp_scale.sharpness.examples import During
from gnp_scale.sharpness.flat import Layout
from gnp_scale.sharpness.landscape import filter_norms, surface
from gnp_scale.sharpness.objective import Fixed, LossSum, Params, value
from gnp_scale.sharpness.settings import Settings
from gnp_scale.training.setup import Task

_FEWEST = 3
"""Checkpoints that span a plane."""
_MARGIN = 0.2
"""How far the plane reaches beyond the path, as a share of its width and height."""
_FLATTEST = 1e-8
"""The smallest ratio of the squared lengths along both directions that float32 can tell from a straight line."""


@dataclass(frozen=True)
class Trajectory:
    """What was measured, the oldest checkpoint first."""

    steps: list[int]
    losses: np.ndarray
    """At the checkpoints themselves, of which most are not in the plane."""
    places: np.ndarray
    """Their projections into the plane (T x 2); the parameters that are measured are at (0, 0)."""
    share: float
    """The share of the squared distances from the parameters that the plane has."""
    ticks: np.ndarray
    """The steps along both directions (2 x A)."""
    plane: np.ndarray
    """The losses (A x A): a row for each step along the second direction."""


def measure(
    task: Task,
    loss_sum: LossSum,
    params: Params,
    run_dir: Folder,
    fixed: Fixed,
    is_free: Any,
    settings: Settings,
    during: During,
) -> Trajectory:
    """Measures the path of the run in `run_dir` around `params`.

    Batch statistics are computed anew at each place and for each checkpoint. In memory is a vector of the size of the
    parameters for each checkpoint, sharded like them.

    Raises:
        ConfigError: there are too few intact checkpoints, or all are on a straight line.
    """
    statistics_of, data = statistics.prepare(task, fixed.shared, settings, during)

    def loss_of(params: Params, data: tuple[Any, Fixed]) -> jax.Array:
        return value(loss_sum, params, Fixed(statistics_of(params, data[0]), data[1].parts))

    units = jax.jit(partial(_units, is_free=is_free))(params)
    layout, losses, vectors = Layout.of(params), {}, []
    to_vector = jax.jit(lambda *trees: layout.flatten(jax.tree.map(_divided, *trees)))
    loss_at = jax.jit(loss_of)
    for step, state in load_each(run_dir, task.abstract_state().network):
        with during():
            vector_N = to_vector(state.evaluated[0], params, units)
            if not math.isfinite(jnp.sum(jnp.abs(vector_N))):
                announce(f"the checkpoint of step {step} has parameters that are not finite: it is left out")
                continue
            losses[step] = float(loss_at(state.evaluated[0], (data, fixed)))
            vectors.append(vector_N)
        announce(f"the checkpoint of step {step} has the loss {losses[step]:.4g}")
    check(
        len(losses) >= _FEWEST,
        f"{run_dir} holds {len(losses)} intact checkpoints, but {_FEWEST} span a plane: leave trajectory out, or train "
        "with a larger --checkpoint.keep-last",
    )
    places_Tx2, share, axes = _main_axes(vectors)
    to_direction = jax.jit(lambda axis_N, units: jax.tree.map(jnp.multiply, layout.unflatten(axis_N), units))
    directions = [to_direction(axis_N, units) for axis_N in axes]
    ticks_2xA = np.stack([_ticks(place_T, settings.grid_size) for place_T in places_Tx2.T])
    told = progress.told(during, "the plane of the trajectory", settings.grid_size, "rows")
    plane = surface(loss_of, params, directions, ticks_2xA, (data, fixed), told)
    return Trajectory([*losses][::-1], np.array([*losses.values()][::-1]), places_Tx2[::-1], share, ticks_2xA, plane)


def _units(params: Params, is_free: Any) -> Params:
    norms = filter_norms(params, is_free)
    num_filters = jax.tree.reduce(jnp.add, jax.tree.map(lambda norm: jnp.sum(norm > 0), norms))
    return jax.tree.map(lambda norm: norm * jnp.sqrt(num_filters), norms)


def _divided(other: jax.Array, w: jax.Array, unit: jax.Array) -> jax.Array:
    return jnp.where(unit > 0, (other - w) / unit, 0.0)


def _main_axes(vectors: list[jax.Array]) -> tuple[np.ndarray, float, list[jax.Array]]:
    """The plane through 0 with the least squared distances from the vectors: (places T x 2, share, both axes).

    The axes have N numbers and are orthonormal. The oldest vector, the last one, has no negative place. Empties the
    list, so that the memory is free afterwards.
    """
    vectors_TxN = jnp.stack(vectors)
    vectors.clear()
    dot_TxT = np.asarray(jnp.einsum("tn,sn->ts", vectors_TxN, vectors_TxN, out_sharding=on_mesh(P())), np.float64)
    squares_T, mixtures_TxT = np.linalg.eigh(dot_TxT)
    squares_2, mixtures_Tx2 = squares_T[:-3:-1], mixtures_TxT[:, :-3:-1]
    check(
        squares_2[1] > _FLATTEST * squares_2[0],
        "the checkpoints are on a straight line or all the same, and span no plane: leave trajectory out",
    )
    mixtures_Tx2 = mixtures_Tx2 * np.where(mixtures_Tx2[-1] < 0, -1, 1)
    weights_2xT = (mixtures_Tx2 / np.sqrt(squares_2)).T.astype(np.float32)
    axes = [jnp.einsum("t,tn->n", weight_T, vectors_TxN) for weight_T in weights_2xT]
    return mixtures_Tx2 * np.sqrt(squares_2), float(squares_2.sum() / np.trace(dot_TxT)), axes


def _ticks(place_T: np.ndarray, num: int) -> np.ndarray:
    """Steps that reach beyond the path and its end, 0."""
    low, high = min(place_T.min(), 0.0), max(place_T.max(), 0.0)
    margin = _MARGIN * (high - low)
    return np.linspace(low - margin, high + margin, num)
