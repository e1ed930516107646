"""Sections `mesh`, `train`, `divergence` and `checkpoint`: how a run proceeds."""

import re
from dataclasses import dataclass
from typing import Literal

from gnp_scale.checks import check, check_values

Kernels = Literal["auto", "xla", "triton", "pallas"]
Loss = Literal["softmax", "sigmoid", "bce"]
DivergencePolicy = Literal["stop", "skip", "rollback"]

MOST_STEPS = 100_000_000
"""Of a run: it keeps the kind of each step in memory."""
MOST_SHOWN = 10
"""Evaluations of a run of which TensorBoard gets pictures."""


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes.

    -1 means all devices that the other axes leave.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1

    def __post_init__(self) -> None:
        check_values("mesh", self)
        sizes = (self.replica, self.fsdp, self.tensor)
        check(
            all(size >= 1 or size == -1 for size in sizes) and sizes.count(-1) <= 1,
            f"mesh is replica {self.replica}, fsdp {self.fsdp}, tensor {self.tensor}: "
            "each must be at least 1, and at most one may be -1",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Length of the run, its seed, and what it reports when."""

    num_steps: int = 1000
    seed: int = 0
    label_smoothing: float = 0.0
    """Probability mass spread evenly over the classes in the training loss; evaluation never smooths."""
    loss: Loss = "softmax"
    """Cross-entropy of a softmax, or binary cross-entropy of a sigmoid for each class: its sum over the classes
    ("sigmoid", as in big_vision) or its mean ("bce", as in timm)."""
    target_threshold: float | None = None
    """Share of a class in a mixed label above which the class is a full answer in training, with another loss than
    softmax; None for the shares themselves."""
    accumulate_steps: int = 1
    """Number of equal microbatches that are computed one after the other, in every pass, to save memory."""
    ema_decay: float | None = None
    """Decay per update of a moving average of parameters and batch statistics, which is then evaluated. It is lower in
    the beginning, so that the initial parameters do not dominate the average (`optim.average_share`)."""
    kernels: Kernels = "auto"
    """Implementation of norms, perturbation, blend and update: fused kernels, or XLA and optax. `auto` uses kernels on
    TPUs and GPUs if they support the optimizer."""
    gradient_dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the copy of the parameters at which both passes are computed, so also of gradients and of FSDP's
    communication; the parameters themselves stay in float32."""
    gather: Literal["layer", "pass"] = "layer"
    """When parameters in shards over `fsdp` are gathered: in each layer, and again in its backward pass (ZeRO-3), or
    all at the start of each pass (ZeRO-2), with half of the traffic and room for all of them in `model.dtype`."""
    log_every_steps: int = 10
    eval_every_steps: int = 100
    profile_steps: str | None = None
    """Steps of which each process records a profile, as START:STOP like a slice: 10:15 for the steps 10 to 14. The
    first step of a start is never recorded."""

    def __post_init__(self) -> None:
        check_values("train", self)
        for name in ("num_steps", "log_every_steps", "eval_every_steps", "accumulate_steps"):
            value = getattr(self, name)
            check(value >= 1, f"train.{name} is {value}: it must be at least 1")
        check(self.num_steps <= MOST_STEPS, f"train.num_steps is {self.num_steps}: it must be at most {MOST_STEPS}")
        check(0 <= self.seed < 2**32, f"train.seed is {self.seed}: it must be in [0, 2**32)")
        check(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}: it must be in [0, 1)",
        )
        self._check_threshold()
        self._check_profile()
        check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"train.ema_decay is {self.ema_decay}: it must be between 0 and 1, or None",
        )

    def _check_threshold(self) -> None:
        value = self.target_threshold
        check(value is None or 0 <= value < 1, f"train.target_threshold is {value}: it must be in [0, 1), or None")
        check(
            value is None or (self.loss != "softmax" and not self.label_smoothing),
            f"train.target_threshold is {value}, and makes labels of 0 and 1: use it with train.loss sigmoid or bce, "
            "and without train.label_smoothing",
        )

    def _check_profile(self) -> None:
        text, steps = self.profile_steps, self.profiled
        option = f"train.profile_steps is {text!r}"
        check(text is None or bool(steps), f"{option}: write it as START:STOP, such as 10:15 for the steps 10 to 14")
        check(
            text is None or (steps.start >= 2 and steps.stop <= self.num_steps + 1),
            f"{option} with train.num_steps {self.num_steps}: START must be at least 2, because the first step of a "
            f"start is not recorded, and STOP at most {self.num_steps + 1}",
        )

    @property
    def profiled(self) -> range:
        """The steps of `profile_steps`; empty if it is None."""
        match = re.fullmatch("([0-9]{1,10}):([0-9]{1,10})", self.profile_steps or "")
        return range(int(match[1]), int(match[2])) if match else range(0)

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows `step`."""
        return step % self.eval_every_steps == 0 or step == self.num_steps

    def shows_guesses_after(self, step: int) -> bool:
        """Whether TensorBoard gets pictures of the evaluation after `step`.

        That is the last one, and of more than ten evaluations nine others, evenly spaced: TensorBoard shows ten
        pictures of a name, and the size of its files is bounded.
        """
        number, last = -(-step // self.eval_every_steps), -(-self.num_steps // self.eval_every_steps)
        return MOST_SHOWN * number // last > MOST_SHOWN * (number - 1) // last


@dataclass(frozen=True)
class DivergenceConfig:
    """What happens after a step whose loss or gradients are not finite.

    Its update is never applied (`docs/divergence.md`).
    """

    policy: DivergencePolicy = "stop"
    """End the run with exit code 77, skip the step, or go back to the last good checkpoint."""
    max_skipped_steps: int = 10
    """Number of steps in a row that `skip` allows before it ends the run."""
    max_rollbacks: int = 3
    """Number of rollbacks in the life of a run before `rollback` ends the run."""
    pass_bad_batches: bool = True
    """After a rollback, continue after the batch of the bad step; otherwise the same batches are read again."""
    plain_steps: int = 0
    """Number of steps without the penalty after a rollback."""

    def __post_init__(self) -> None:
        check_values("divergence", self)
        for name, lowest in {"max_skipped_steps": 1, "max_rollbacks": 1, "plain_steps": 0}.items():
            value = getattr(self, name)
            check(value >= lowest, f"divergence.{name} is {value}: it must be at least {lowest}")
        users = dict.fromkeys(("max_rollbacks", "pass_bad_batches", "plain_steps"), "rollback")
        for name, policy in ({"max_skipped_steps": "skip"} | users).items():
            value, default = getattr(self, name), getattr(DivergenceConfig, name)
            check(
                self.policy == policy or value == default,
                f"divergence.{name} is {value}, but has no effect with divergence.policy {self.policy}: "
                f"set that to {policy}, or leave it at {default}",
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved, and which saved states are kept."""

    every_steps: int | None = 1000
    every_minutes: float | None = None
    """Also save when this time has passed since the last save."""
    keep_last: int = 2
    keep_every_steps: int | None = None
    """Milestones: checkpoints of steps divisible by this are never deleted."""
    keep_best: int = 1
    """Number of checkpoints kept for their `best_metric`."""
    best_metric: Literal["eval/top1", "eval/top5", "eval/loss"] = "eval/top1"
    """The measure of the best checkpoint: the highest accuracy, or the lowest loss."""
    num_healthy_reports: int = 2
    """Number of healthy losses in a row, reported after a checkpoint, that make it good; until then it does not replace
    a good one."""
    spike_factor: float = 5.0
    """A loss above this multiple of the running median is not healthy."""
    num_save_attempts: int = 4
    """Number of failed save attempts in a row, with growing waits between them, after which a run ends."""

    def __post_init__(self) -> None:
        check_values("checkpoint", self)
        for name in ("every_steps", "every_minutes", "keep_every_steps"):
            value = getattr(self, name)
            check(value is None or value > 0, f"checkpoint.{name} is {value}: it must be positive, or None")
        for name in ("keep_last", "num_save_attempts"):
            value = getattr(self, name)
            check(value >= 1, f"checkpoint.{name} is {value}: it must be at least 1")
        for name in ("keep_best", "num_healthy_reports"):
            value = getattr(self, name)
            check(value >= 0, f"checkpoint.{name} is {value}: it must not be negative")
        check(self.spike_factor > 1, f"checkpoint.spike_factor is {self.spike_factor}: it must be above 1")
