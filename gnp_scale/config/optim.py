"""Section `optim`: the base optimizer and its schedule."""

from dataclasses import dataclass
from typing import Literal

from gnp_scale.checks import changed_options, check, check_values

OptimizerName = Literal["sgd", "adamw", "lamb", "lars", "lion", "adafactor", "muon", "custom"]
LearningRateSchedule = Literal["constant", "cosine", "linear", "step"]
_USERS = {
    "momentum": ("sgd", "lars", "muon"),
    "nesterov": ("sgd", "muon"),
    "b1": ("adamw", "lamb", "lion", "adafactor", "muon"),
    "b2": ("adamw", "lamb", "lion", "adafactor", "muon"),
    "eps": ("adamw", "lamb", "muon"),
}
"""The optimizers that use an option."""


@dataclass(frozen=True)
class OptimConfig:
    """The base optimizer, which takes the penalised gradient."""

    name: OptimizerName = "sgd"
    function: str | None = None
    """FILE:FUNCTION of the optimizer "custom": it takes the schedule of the learning rate, and returns an
    `optax.GradientTransformation` that applies it."""
    learning_rate: float = 0.1
    """The highest learning rate, reached at the end of the warm-up."""
    schedule: LearningRateSchedule = "cosine"
    warmup_steps: int = 0
    end_learning_rate: float = 0.0
    """The learning rate at the end of the schedules `cosine` and `linear`."""
    step_boundaries: tuple[float, ...] = (0.3, 0.6, 0.8)
    """Fractions of the run at which the schedule `step` multiplies the learning rate by `step_factor`."""
    step_factor: float = 0.2
    momentum: float = 0.9
    """Momentum of sgd, lars and muon."""
    nesterov: bool = True
    """Nesterov momentum in sgd and muon."""
    b1: float = 0.9
    """Decay of the first moment in adamw, lamb, adafactor and muon's Adam; weight of the moment in a step of lion."""
    b2: float = 0.999
    """Decay of the second moment in adamw, lamb and muon's Adam, and of the moment in lion (0.99 in its paper); the
    largest decay of the second moment in adafactor."""
    eps: float = 1e-8
    """Added to the root of the second moment in adamw, lamb and muon's Adam."""
    moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the first moment or momentum is kept; second moments are float32."""
    weight_decay: float = 0.0
    """Decoupled decay of the parameters, times the learning rate."""
    l2_in_loss: float = 0.0
    """Factor of half the squared norm of the decayed parameters, added to the loss (so it enters both gradients)."""
    decay_norm_and_bias: bool = False
    """Apply decay to scales and biases too."""
    clip_norm: float | None = None
    """Largest global norm of the gradient that the optimizer sees."""
    agc: float | None = None
    """Largest norm of the gradient of each unit, as a share of the norm of its parameters (adaptive gradient clipping,
    arXiv 2102.06171); before `clip_norm`. The head is not clipped."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each block to the one before it, for transformers, MLP-Mixer and ConvNeXt; that
    of the head is 1 (arXiv 2106.08254)."""
    frozen: tuple[str, ...] = ()
    """Patterns of the paths of parameters that are not trained, such as "embed/*" or "blocks/0[0-5]/*"."""

    def unused_advice(self) -> str | None:
        """Which options were changed, although this optimizer and this schedule do not use them; None if none.

        It is only advice: earlier versions trained with them, and a run keeps its options to the end.
        """
        of_schedule = () if self.schedule == "step" else ("step_boundaries", "step_factor")
        of_optimizer = (name for name, users in _USERS.items() if self.name not in users)
        changed = changed_options("optim", self, (*of_optimizer, *of_schedule))
        return f"without effect with {self.name} and the schedule {self.schedule}: {changed}" if changed else None

    def __post_init__(self) -> None:
        check_values("optim", self)
        check(
            (self.function is not None) == (self.name == "custom"),
            f"optim.function is {self.function} with optim.name {self.name}: custom needs FILE:FUNCTION, others None",
        )
        check(
            self.name != "custom" or (self.weight_decay, self.moment_dtype) == (0, "float32"),
            f"optim.weight_decay is {self.weight_decay} and optim.moment_dtype {self.moment_dtype}, but the function "
            "of optim.name custom decides both: leave them at 0 and float32",
        )
        check(self.learning_rate > 0, f"optim.learning_rate is {self.learning_rate}: it must be positive")
        check(self.warmup_steps >= 0, f"optim.warmup_steps is {self.warmup_steps}: it must not be negative")
        for name in ("eps", "weight_decay", "l2_in_loss"):
            value = getattr(self, name)
            check(value >= 0, f"optim.{name} is {value}: it must not be negative")
        check(
            0 <= self.end_learning_rate <= self.learning_rate,
            f"optim.end_learning_rate is {self.end_learning_rate}: "
            f"it must be between 0 and optim.learning_rate, {self.learning_rate}",
        )
        check(
            self.end_learning_rate == 0 or self.schedule in ("cosine", "linear"),
            f"optim.end_learning_rate is {self.end_learning_rate} with the schedule {self.schedule}, "
            "which has no end of its own: set it to 0, or the schedule to cosine or linear",
        )
        check(0 <= self.step_factor <= 1, f"optim.step_factor is {self.step_factor}: it must be in [0, 1]")
        for name in ("clip_norm", "agc"):
            value = getattr(self, name)
            check(value is None or value > 0, f"optim.{name} is {value}: it must be positive, or None")
        check(0 < self.layer_decay <= 1, f"optim.layer_decay is {self.layer_decay}: it must be above 0 and at most 1")
        for name in ("momentum", "b1", "b2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optim.{name} is {value}: it must be in [0, 1)")
        increasing = all(a < b for a, b in zip((0.0, *self.step_boundaries), (*self.step_boundaries, 1.0), strict=True))
        check(increasing, f"optim.step_boundaries is {self.step_boundaries}: give increasing fractions between 0 and 1")
