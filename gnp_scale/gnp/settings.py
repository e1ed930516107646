"""`Gnp`: the settings of the method and its variants."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, cast, get_args

import numpy as np

from gnp_scale.gnp.blend import ratio
from gnp_scale.gnp.gates import Gate

type Schedule = Callable[[Any], Any]
"""A function of the step (a scalar, or an array of steps elementwise), like the schedules of optax."""
type Mask = Callable[[str], bool]
"""A function of the path of a parameter, such as "blocks/00/mlp/in_proj/kernel"."""

BlendName = Literal["paper", "unit_norm", "gsam", "decoupled"]
Direction = Literal["gradient", "momentum", "reused"]
Metric = Literal["euclidean", "adaptive"]


_LARGEST_ALPHA = 1 + 1e-6
"""For blends that do not extrapolate; above 1, because rounding may bring lam / r above 1."""


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
            g1 is kept. The steps between add it to g1, rescaled to alpha * ||g1|| (LookSAM, arXiv 2203.02714).
        reuse_every: number of steps for which "reused" keeps a direction.
        metric: `"euclidean"`, or `"adaptive"`: eps = r T^2 g / ||T g|| with T = |w| (ASAM, arXiv 2102.11600).
        mask: which parameters are perturbed, by path; None means all. SAM-ON (arXiv 2306.04226) perturbs norm layers.
        perturb_groups: number of equal groups of consecutive examples in the batch, each with its own eps; u is the
            mean over groups (m-sharpness). It does not depend on the devices.
        ascent_fraction: g1 is computed from this first fraction of each group, in [0.001, 1].
        gate: on which steps the penalty is on; None means always.

    Raises:
        ValueError: a value is out of range, or two values are incompatible.
    """

    r: float | Schedule = 0.05
    alpha: float | Schedule | None = None
    lam: float | Schedule | None = None
    blend: BlendName = "paper"
    direction: Direction = "gradient"
    reuse_every: int = 5
    metric: Metric = "euclidean"
    mask: Mask | None = None
    perturb_groups: int = 1
    ascent_fraction: float = 1.0
    gate: Gate | None = None

    def __post_init__(self) -> None:
        if (self.alpha is None) == (self.lam is None):
            raise ValueError(
                "The strength of the penalty is either alpha or lam = alpha * r. "
                f"Got alpha={self.alpha} and lam={self.lam}. Give exactly one of them."
            )
        for name in ("r", "alpha", "lam"):
            value = getattr(self, name)
            if is_number(value) and not 0 <= value < float("inf"):
                raise ValueError(f"Gnp.{name} must be finite and not negative. Got {value}. Give a number >= 0.")
        for name, choices in (("blend", BlendName), ("direction", Direction), ("metric", Metric)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"Gnp.{name} must be one of {get_args(choices)}. Got {getattr(self, name)!r}. Choose one of them."
                )
        for name in ("reuse_every", "perturb_groups"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 1:
                raise ValueError(f"Gnp.{name} must be a whole number of at least 1. Got {value}. Give such a number.")
        if not 0.001 <= self.ascent_fraction <= 1:
            raise ValueError(f"Gnp.ascent_fraction must be in [0.001, 1]. Got {self.ascent_fraction}. Change it.")
        self._check_combination()

    def _check_combination(self) -> None:
        """Raises ValueError for settings that exclude each other."""
        needs = {
            "blend": self.blend == "paper",
            "perturb_groups": self.perturb_groups == 1,
            "ascent_fraction": self.ascent_fraction == 1,
        }
        if self.direction != "gradient" and not all(needs.values()):
            wrong = next(name for name, is_met in needs.items() if not is_met)
            raise ValueError(
                f'The direction "{self.direction}" needs blend="paper", perturb_groups=1 and ascent_fraction=1. '
                f"Got {wrong}={getattr(self, wrong)!r}. Change it, or the direction."
            )
        if self.direction == "momentum" and self.alpha != 1:
            raise ValueError(
                'The direction "momentum" has no g1 to blend with. '
                f"Got alpha={self.alpha}, lam={self.lam}. Give alpha=1."
            )
        alpha = self.values()[1] if is_number(self.r) and is_number(self.lam) else self.alpha
        of_lam = "" if self.lam is None else f" (lam={self.lam} / r={self.r})"
        if self.blend != "decoupled" and is_number(alpha) and cast(float, alpha) > _LARGEST_ALPHA:
            raise ValueError(
                f'alpha may exceed 1 only with blend="decoupled". Got {alpha}{of_lam} with {self.blend!r}. '
                "Give alpha in [0, 1], or that blend."
            )

    def values(self, step: Any = None) -> tuple[Any, Any]:
        """(r, alpha) at `step`; numbers if they do not depend on the step."""
        r = _at(self.r, step)
        if self.lam is None:
            return r, _at(self.alpha, step)
        lam = _at(self.lam, step)
        if is_number(r):
            return r, lam / r if r else 0.0
        return r, ratio(lam, r)

    @property
    def is_plain(self) -> bool:
        """Whether this is plain training at every step: r or alpha is the number 0 (with "gsam" alpha = 0 is SAM)."""
        strengths = (self.r,) if self.blend == "gsam" else (self.r, self.alpha, self.lam)
        return any(is_number(value) and value == 0 for value in strengths)

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
        return on if self.gate is None else on & _at(self.gate, step)

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
        largest = np.inf if self.blend == "decoupled" else _LARGEST_ALPHA
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
        all_steps = np.arange(steps.max() + 1)
        self.check(all_steps)
        on = np.broadcast_to(np.asarray(self.is_on(all_steps)), all_steps.shape)
        kinds = np.where(on, StepKind.FULL, StepKind.PLAIN)
        if self.direction == "reused":
            kinds = count_reuses(kinds, np.zeros_like(on), self.reuse_every)
        return kinds[steps]

    def num_passes(self, kind: StepKind) -> float:
        """Forward and backward passes over the batch that a step of this kind costs."""
        return 1 + self.ascent_fraction if kind == StepKind.FULL and self.direction != "momentum" else 1


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


def is_number(value: Any) -> bool:
    """Whether a setting is a number, known before anything is traced."""
    return isinstance(value, int | float | np.number)


def _is_on(value: Any) -> Any:
    """Whether a value is positive, or NaN."""
    return (value > 0) | (value != value)


def _at(value: float | Schedule | Gate | None, step: Any) -> Any:
    if not callable(value):
        return cast(float, value)
    if step is None:
        raise ValueError(
            "Schedules and gates are functions of the step. Gnp has one, but no step was given. "
            "Call the function with step=..., the number of updates so far."
        )
    return value(step)
