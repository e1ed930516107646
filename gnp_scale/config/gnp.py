"""Section `gnp`: the penalty on the gradient norm."""

from dataclasses import dataclass
from typing import Literal

from gnp_scale.checks import check, check_values

PenaltySchedule = Literal["constant", "warmup", "cosine", "learning_rate"]
BlendName = Literal["paper", "unit_norm", "gsam", "decoupled"]
Direction = Literal["gradient", "momentum", "reused", "stale", "friendly"]
Metric = Literal["euclidean", "adaptive", "layerwise"]
Radius = Literal["fixed", "loss", "gradient"]
PerturbedParameters = Literal["all", "norm", "kernels"]
GateName = Literal["always", "every", "window", "tail", "decay", "bernoulli", "norm"]

_DECIDING = ("direction", "gate", "radius", "r_schedule")
"""Options that decide which others have an effect."""


@dataclass(frozen=True)
class GnpConfig:
    """The penalty on the gradient norm (`docs/method.md`).

    This section checks each value by itself, and that no value is without effect. `gnp_scale.gnp.Gnp` checks
    combinations when it is built from this section (`training.penalty.make_gnp`).
    """

    r: float = 0.05
    """Radius of the perturbation."""
    alpha: float | None = 0.8
    """Weight of the perturbed gradient; 0 is plain training, 1 is SAM."""
    lam: float | None = None
    """Strength of the penalty, lambda = alpha * r; given instead of alpha."""
    blend: BlendName = "paper"
    direction: Direction = "gradient"
    reuse_every: int = 5
    """Number of steps for which the direction "reused" keeps its direction."""
    gradient_weight: float = 1.0
    """Of g1 in the direction "friendly"."""
    average_weight: float = -1.0
    """Of the moving average of g1 in the direction "friendly"."""
    average_decay: float = 0.9
    """Of that average."""
    metric: Metric = "euclidean"
    radius: Radius = "fixed"
    """Length of eps: r; or what raises the loss by r to first order, at most `max_r`; or r times the gradient norm."""
    max_r: float | None = None
    """Largest length of eps with the radius "loss"; None: no limit."""
    perturbed: PerturbedParameters = "all"
    """Parameters that are perturbed: all, scales and biases of norm layers (SAM-ON), or all kernels."""
    perturb_groups: int = 1
    """Number of groups of consecutive examples of the global batch, each with its own perturbation."""
    ascent_fraction: float = 1.0
    """First fraction of each group, from which the perturbation is computed."""
    gate: GateName = "always"
    gate_every: int = 10
    gate_start: int = 0
    gate_stop: int | None = None
    """End of the gate's window; None means the end of the run."""
    gate_tail: float = 0.5
    """Last share of the steps, for the gate "tail"."""
    gate_ramp_steps: int = 0
    """Steps in which r grows linearly to its value after the gate "window", "tail" or "decay" opens."""
    gate_probability: float = 0.5
    gate_threshold: float = 1.0
    """Standard deviations above the mean that the squared gradient norm needs at the first step of the gate "norm"."""
    gate_end_threshold: float = -1.0
    """The same at the last step; linear between."""
    gate_decay: float = 0.9
    """Of the moving averages of the gate "norm"."""
    r_schedule: PenaltySchedule = "constant"
    end_r: float | None = None
    """With `r_schedule` "learning_rate", the radius at `optim.end_learning_rate`: the rho_min of GSAM, whose rho_max is
    `r`. None: r is proportional to the learning rate."""
    alpha_schedule: PenaltySchedule = "constant"
    warmup_steps: int = 0
    """Length of the linear warm-up of r or alpha."""

    def __post_init__(self) -> None:
        check_values("gnp", self)
        check(
            (self.alpha is None) != (self.lam is None),
            f"gnp.alpha is {self.alpha} and gnp.lam is {self.lam}: give one of them and set the other to None",
        )
        for name in ("r", "alpha", "lam"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"gnp.{name} is {value}: it must not be negative")
        for name in ("reuse_every", "perturb_groups", "gate_every"):
            value = getattr(self, name)
            check(value >= 1, f"gnp.{name} is {value}: it must be at least 1")
        for name in ("gate_start", "gate_ramp_steps", "warmup_steps"):
            value = getattr(self, name)
            check(value >= 0, f"gnp.{name} is {value}: it must not be negative")
        check(
            self.gate_stop is None or self.gate_stop > self.gate_start,
            f"gnp.gate_stop is {self.gate_stop} with gnp.gate_start {self.gate_start}: it must be above that, or None",
        )
        check(0 <= self.gate_probability <= 1, f"gnp.gate_probability is {self.gate_probability}: it must be in [0, 1]")
        check(0 < self.gate_tail <= 1, f"gnp.gate_tail is {self.gate_tail}: it must be in (0, 1]")
        for name in ("average_decay", "gate_decay"):
            check(0 <= getattr(self, name) < 1, f"gnp.{name} is {getattr(self, name)}: it must be in [0, 1)")
        check(self.max_r is None or self.max_r > 0, f"gnp.max_r is {self.max_r}: it must be positive, or None")
        check(
            0.001 <= self.ascent_fraction <= 1,
            f"gnp.ascent_fraction is {self.ascent_fraction}: it must be in [0.001, 1]",
        )
        check(
            self.end_r is None or 0 <= self.end_r <= self.r,
            f"gnp.end_r is {self.end_r} with gnp.r {self.r}: it must be between 0 and that, or None",
        )
        used = {
            "end_r": self.r_schedule == "learning_rate",
            "reuse_every": self.direction == "reused",
            "gate_every": self.gate == "every",
            "gate_start": self.gate == "window",
            "gate_stop": self.gate == "window",
            "gate_tail": self.gate == "tail",
            "gate_ramp_steps": self.gate in ("window", "tail", "decay"),
            "gate_probability": self.gate == "bernoulli",
            "gate_threshold": self.gate == "norm",
            "gate_end_threshold": self.gate == "norm",
            "gate_decay": self.gate == "norm",
            "gradient_weight": self.direction == "friendly",
            "average_weight": self.direction == "friendly",
            "average_decay": self.direction == "friendly",
            "max_r": self.radius == "loss",
        }
        deciding = ", ".join(f"gnp.{name} {getattr(self, name)}" for name in _DECIDING)
        for option, is_used in used.items():
            value, default = getattr(self, option), getattr(GnpConfig, option)
            check(
                is_used or value == default,
                f"gnp.{option} is {value}, but has no effect with {deciding}: change one of those, or leave it at "
                f"{default}",
            )
        warms_up = "warmup" in (self.r_schedule, self.alpha_schedule)
        check(
            warms_up == (self.warmup_steps > 0),
            f"gnp.warmup_steps is {self.warmup_steps} with schedules {self.r_schedule} of r and "
            f"{self.alpha_schedule} of alpha: a warm-up needs both a schedule named warmup and a number of steps",
        )
