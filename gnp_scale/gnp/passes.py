"""What all passes of a step share: their results, their weights, and how a pass is made."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from gnp_kernels import Implementation
from gnp_kernels.dispatch import device_kind

from gnp_scale import mesh
from gnp_scale.gnp.blend import Scalar, Tree
from gnp_scale.gnp.perturbation import Perturbed, perturb
from gnp_scale.gnp.settings import Gnp

_V5P = ("TPU v5", "TPU v5p")
"""Its names."""


class Penalized(NamedTuple):
    """The results of one step.

    `telemetry` holds scalars of at least float32: `grad_norm` ||g1||, `update_grad_norm` ||u||, `r`, `alpha`, `lambda`,
    `on`; and, if there was a second pass, `loss_perturbed` L(w + eps), `grad_norm_perturbed` ||g2||, `cosine` of g1 and
    g2, and `curvature` (<g1, g2> / ||g1|| - ||g1||) / r, which tends to d^T H d along the direction d of g1. With
    groups they are means over the groups. Metrics that a variant does not compute are absent.
    """

    loss: jax.Array
    """Of the clean pass; with the directions "momentum" and "stale", of the only pass, which is perturbed."""
    aux: Any
    grad: Any
    """u, for the base optimizer: a tree like the parameters from `penalize`, a `LinearCombination` from `combine`."""
    telemetry: dict[str, jax.Array]
    state: Tree
    """What this step passes to the next one, as `Gnp.init_state` of the first; None if nothing."""
    displacement: Tree
    """alpha * (g2 - g1) for the blend "decoupled": the parameters move by -(learning rate) times it; otherwise None."""


class Weights(NamedTuple):
    """The parameters: the master, which is perturbed and updated, and optionally a copy to differentiate at."""

    master: Tree
    copy: Tree

    @property
    def differentiated(self) -> Tree:
        """Where the clean pass takes its gradient."""
        return self.master if self.copy is None else self.copy

    @property
    def copy_dtype(self) -> Any:
        """The type of the copy; None if there is no copy."""
        dtypes = {x.dtype for x in jax.tree.leaves(self.copy)}
        if len(dtypes) > 1:
            raise ValueError(
                "A copy of the parameters to differentiate at must have one type. "
                f"Got {', '.join(sorted(map(str, dtypes)))}. Cast all of them to one."
            )
        return dtypes.pop() if dtypes else None


class Inputs(NamedTuple):
    """What a penalised step computes with."""

    weights: Weights
    batch: Tree
    rest: tuple[Any, ...]
    """Further arguments of the loss."""
    r: Scalar
    alpha: Scalar
    state: Tree
    """What the step before has passed on."""


class Passes(NamedTuple):
    """What all kinds of passes share."""

    gnp: Gnp
    gradient: Callable[..., Any]
    """Returns ((loss, aux), gradient) of a batch."""
    implementation: Implementation

    def perturbed(self, weights: Weights, direction: Tree, r: Scalar) -> Perturbed:
        """Parameters to differentiate at, moved along `direction`."""
        moved = perturb(
            weights.master, direction, r, self.gnp, dtype=weights.copy_dtype, implementation=self.implementation
        )
        return moved._replace(params=_stored(moved.params)) if self.implementation == "xla" else moved


def _stored(perturbed: Tree) -> Tree:
    """`perturbed`; on TPU v5p it is computed once, if every device has all of it.

    Else XLA computes w + eps in every matrix product that reads it, again for each of its tiles. In float32 that takes
    a tenth of the cycles of a ViT-B's step on v5p, and nothing on v5e, by the compiler's estimates. Shards are stored
    anyway, before they are gathered.
    """
    if device_kind() not in _V5P or any(mesh.is_sharded(w, mesh.AXES) for w in jax.tree.leaves(perturbed)):
        return perturbed
    return jax.lax.optimization_barrier(perturbed)
