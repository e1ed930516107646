"""`Gnp`: the settings of the method and its variants."""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.gnp.blend import ratio
from gnp_scale.gnp.checks import LARGEST_ALPHA, check_combinations, check_values
from gnp_scale.gnp.choices import (
    AxesOf,
    BlendName,
    Direction,
    Mask,
    Metric,
    NormGate,
    Radius,
    Schedule,
    at,
    is_number,
    last_axis_is_output,
)
from gnp_scale.gnp.gates import Gate


class StepKind(IntEnum):
    """What a step computes; chosen on the host, so that each kind is compiled as its own program."""

    PLAIN = 0
    """One pass: the penalty is off."""
    FULL = 1
    REUSE = 2
    """One pass, with the direction that the last full step of "reused" kept."""


@dataclass(frozen=True)
class Gnp:
    """The penalty: how to perturb the parameters, and how to blend the two gradients.

    Args:
        r: radius of the perturbation, in the Euclidean norm over all parameters; a number or a schedule of the step.
        alpha: weight of the perturbed gradient; a number or a schedule of the step. SAM is 1.
        lam: strength of the penalty, alpha * r; given instead of alpha.
        blend: how u comes from g1 and g2:
            `"paper"`: (1 - alpha) g1 + alpha g2;
            `"unit_norm"`: (1 - alpha) g1 / ||g1|| + alpha g2, what the authors' released code does by default;
            `"gsam"`: g2 - alpha * (part of g1 orthogonal to g2), arXiv 2203.08065, equation 8;
            `"decoupled"`: the base optimizer sees g1, and the parameters also move by
            -(learning rate) * alpha * (g2 - g1) (arXiv 2305.15817); alpha may exceed 1.
        direction: the direction of the perturbation:
            `"gradient"`: g1;
            `"momentum"`: minus the momentum of the optimizer, which needs no extra pass (arXiv 2401.12033);
            `"reused"`: g1 every `reuse_every` steps, counting steps with the penalty on. The part of g2 orthogonal to
            g1 is kept. The steps between add it to g1, rescaled to alpha * ||g1|| (LookSAM, arXiv 2203.02714);
            `"stale"`: the gradient of the step before, which needs no extra pass (S2-SAM, NeurIPS 2024);
            `"friendly"`: `gradient_weight` g1 + `average_weight` m, where m is the moving average of g1 over the steps
            with the penalty on: by default g1 - m (F-SAM, arXiv 2403.12350), and m with weights 0 and 1 (VaSSO, arXiv
            2309.15639).
        reuse_every: number of steps for which "reused" keeps a direction.
        gradient_weight: of g1 in the direction "friendly".
        average_weight: of the moving average in the direction "friendly".
        average_decay: of that average, in [0, 1).
        metric: `"euclidean"`; `"adaptive"`: eps = r T^2 g / ||T g|| with T = |w| (ASAM, arXiv 2102.11600); or
            `"layerwise"`: eps of each layer has the norm r sqrt(outputs / inputs), in the Euclidean norm over the layer
            (the spectral condition of muP^2, arXiv 2411.00075).
        axes: the inputs and outputs of each parameter, for "layerwise".
        radius: the length of eps: `"fixed"`: r; `"loss"`: min(r / ||g1||, `max_r`), so that r is the rise of the loss
            to first order (LE-SAM, arXiv 2605.10183); `"gradient"`: r ||g1||, so that eps = r g1.
        max_r: the largest length of eps with the radius "loss".
        mask: which parameters are perturbed, by path; None means all. SAM-ON (arXiv 2306.04226) perturbs norm layers.
        perturb_groups: number of equal groups of consecutive examples in the batch, each with its own eps; u is the
            mean over groups (m-sharpness). It does not depend on the devices.
        ascent_fraction: g1 is computed from this first fraction of each group, in [0.001, 1]. Where a schedule is at 0,
            u is that g1, except in `value_and_grad`; a step of the kind PLAIN (`step_kinds`) takes the gradient of all.
        gate: on which steps the penalty is on; None means always.
        norm_gate: on which of these ||g1|| is large enough for a second pass; None means on all.

    Raises:
        ValueError: a value is out of range, or two values are incompatible.
    """

    r: float | Schedule = 0.05
    alpha: float | Schedule | None = None
    lam: float | Schedule | None = None
    blend: BlendName = "paper"
    direction: Direction = "gradient"
    reuse_every: int = 5
    gradient_weight: float = 1.0
    average_weight: float = -1.0
    average_decay: float = 0.9
    metric: Metric = "euclidean"
    axes: AxesOf = field(default=last_axis_is_output, repr=False)
    radius: Radius = "fixed"
    max_r: float = math.inf
    mask: Mask | None = None
    perturb_groups: int = 1
    ascent_fraction: float = 1.0
    gate: Gate | None = None
    norm_gate: NormGate | None = None

    def __post_init__(self) -> None:
        check_values(self)
        check_combinations(self)

    def values(self, step: Any = None) -> tuple[Any, Any]:
        """(r, alpha) at `step`; numbers if they do not depend on the step."""
        r = at(self.r, step)
        if self.lam is None:
            return r, at(self.alpha, step)
        lam = at(self.lam, step)
        if is_number(r):
            return r, lam / r if r else 0.0
        return r, ratio(lam, r)

    def length_of(self, r: Any, norm: jax.Array) -> Any:
        """The length of eps, from r and the norm of its direction; both scalars."""
        match self.radius:
            case "fixed":
                return r
            case "loss":
                return jnp.minimum(ratio(r, norm), self.max_r)
            case "gradient":
                return r * norm

    def init_state(self, params: Any) -> Any:
        """What a step passes to the next one, before the first: a tree like the parameters, or two scalars, or None."""
        if self.is_plain:
            return None
        if self.norm_gate is not None:
            return {"mean": jnp.zeros(()), "variance": jnp.zeros(())}
        return jax.tree.map(jnp.zeros_like, params) if self.direction in ("reused", "stale", "friendly") else None

    @property
    def is_plain(self) -> bool:
        """Whether this is plain training at every step: r or alpha is the number 0 (with "gsam" alpha = 0 is SAM)."""
        strengths = (self.r,) if self.blend == "gsam" else (self.r, self.alpha, self.lam)
        return any(is_number(value) and value == 0 for value in strengths)

    @property
    def is_constant(self) -> bool:
        """Whether r and the strength are numbers, known before anything is traced."""
        return is_number(self.r) and is_number(self.alpha if self.lam is None else self.lam)

    def is_active(self, r: Any, alpha: Any) -> Any:
        """Whether the penalty has an effect with these values; with "gsam" alpha = 0 is SAM.

        NaN has an effect: it turns u into NaN. Otherwise the penalty would be off without a message.
        """
        return _is_on(r) & (_is_on(alpha) | (self.blend == "gsam"))

    def is_on(self, step: Any) -> Any:
        """Whether the penalty is on at `step`: r and alpha are positive, and the gate is open."""
        if self.is_plain:
            return np.zeros(np.shape(step), bool)
        r, alpha = self.values(step)
        on = self.is_active(r, alpha)
        return on if self.gate is None else on & at(self.gate, step)

    def check(self, steps: np.ndarray) -> None:
        """Checks the values of the schedules at `steps`; call it on the host, before the first of them.

        Raises:
            ValueError: at a step whose gate is open, r or alpha is negative or not finite, or alpha is above 1 with a
                blend other than "decoupled".
        """
        if self.is_plain:
            return
        is_open = True if self.gate is None else np.asarray(self.gate(steps))
        r, alpha = (np.asarray(value) for value in self.values(steps))
        largest = np.inf if self.blend == "decoupled" else LARGEST_ALPHA
        is_sound = (r >= 0) & np.isfinite(r) & (alpha >= 0) & np.isfinite(alpha) & (alpha <= largest)
        wrong = np.flatnonzero(np.broadcast_to(~is_sound & is_open, steps.shape))
        if wrong.size:
            r, alpha = (np.broadcast_to(value, steps.shape)[wrong[0]] for value in (r, alpha))
            raise ValueError(
                "The schedules of a penalty must give finite r and alpha >= 0, and alpha <= 1 except with "
                f'blend="decoupled". Got r={r}, alpha={alpha}{"" if self.lam is None else " (lam / r)"} at step '
                f"{steps[wrong[0]]}. Change the schedule. With lam, use the same schedule as for r, or give alpha."
            )

    def step_kinds(self, steps: np.ndarray) -> np.ndarray:
        """The `StepKind` of each of `steps`; call it on the host, once, for all steps of a run.

        Raises:
            ValueError: `check` refuses a value of a schedule, at a step up to the last of `steps`.
        """
        steps = np.asarray(steps)
        all_steps = np.arange(np.max(steps, initial=-1) + 1)
        self.check(all_steps)
        on = np.broadcast_to(np.asarray(self.is_on(all_steps)), all_steps.shape)
        kinds = np.where(on, StepKind.FULL, StepKind.PLAIN)
        if self.direction == "reused":
            kinds = count_reuses(kinds, np.zeros_like(on), self.reuse_every)
        return kinds[steps]

    def num_passes(self, kind: StepKind) -> float:
        """Forward and backward passes over the batch that a step of this kind costs; at most, with a `norm_gate`."""
        has_two = kind == StepKind.FULL and self.direction not in ("momentum", "stale")
        return 1 + self.ascent_fraction if has_two else 1


def count_reuses(kinds: np.ndarray, is_forgotten: np.ndarray, reuse_every: int) -> np.ndarray:
    """The kinds of the direction "reused" at the steps 0, 1, ...: every `reuse_every`-th with the penalty on is full.

    The penalty is off where `kinds` are plain, and where `is_forgotten`. After a forgotten step the count restarts, so
    that the first step with the penalty on is full: the kept direction is too old, or does not exist.
    """
    on = (kinds != StepKind.PLAIN) & ~is_forgotten
    num_on = np.cumsum(on)
    num_since = num_on - np.maximum.accumulate(np.where(is_forgotten, num_on, 0))
    is_full = (num_since - 1) % reuse_every == 0
    return np.where(on, np.where(is_full, StepKind.FULL, StepKind.REUSE), StepKind.PLAIN)


def _is_on(value: Any) -> Any:
    """Whether a value is positive, or NaN."""
    return (value > 0) | (value != value)
