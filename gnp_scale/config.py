"""The configuration: frozen dataclasses with their checks, built by Python functions and overridden by typed flags.

A recipe is a function without arguments in a file, named `file.py:function`, that returns a `Config`; `recipe.py`
loads it, applies the flags, and writes and reads configurations as JSON.
"""

from dataclasses import dataclass, field
from typing import Literal

from gnp_scale.checks import ConfigError as ConfigError
from gnp_scale.checks import check, check_values, data_root

OptimizerName = Literal["sgd", "adamw", "lamb", "lars", "lion"]
LearningRateSchedule = Literal["constant", "cosine", "linear", "step"]
PenaltySchedule = Literal["constant", "warmup", "cosine", "learning_rate"]
BlendName = Literal["paper", "unit_norm", "gsam", "decoupled"]
Kernels = Literal["auto", "xla", "triton", "pallas"]
AttentionImplementation = Literal["auto", "xla", "cudnn", "pallas"]
Direction = Literal["gradient", "momentum", "reused"]
Metric = Literal["euclidean", "adaptive"]
PerturbedParameters = Literal["all", "norm", "kernels"]
GateName = Literal["always", "every", "window", "bernoulli"]
DivergencePolicy = Literal["stop", "skip", "rollback"]
AugmentationPolicy = Literal["none", "autoaugment_cifar10", "autoaugment_imagenet", "randaugment", "three_augment"]


RANDAUGMENT_LEVELS = 31
"""Number of magnitudes of RandAugment, 0 to 30."""
_COUNTS = (
    "batch_size",
    "eval_batch_size",
    "image_size",
    "num_repeats",
    "prefetch_steps",
    "synthetic_num_examples",
    "synthetic_image_size",
    "synthetic_num_classes",
)


_RANGES = {
    "randaugment_num_ops": (1, 10),
    "randaugment_magnitude": (0, RANDAUGMENT_LEVELS - 1),
    **dict.fromkeys(
        ("brightness", "contrast", "saturation", "random_erasing", "mixup_probability", "mixup_end"), (0, 1)
    ),
    "hue": (0, 0.5),
}


@dataclass(frozen=True)
class DataConfig:
    """Which examples, how many at once, and how they are augmented."""

    name: str = "digits"
    """digits, fashion_mnist, cifar10, cifar100, synthetic, or the name of a folder of encoded images in `root`."""
    root: str = "data"
    """Folder that holds one folder for each data set: a path, or gs://bucket/folder."""
    batch_size: int = 128
    """Number of examples of a training step, over all devices."""
    eval_batch_size: int = 512
    crop_padding: int = 0
    """Pixels of reflected border from which a random crop of the image's size is taken."""
    flip: bool = False
    """Mirror half of the images left to right."""
    policy: AugmentationPolicy = "none"
    """Random operations on bytes (`docs/augmentation.md`): AutoAugment (arXiv 1805.09501), RandAugment (arXiv
    1909.13719) or the three-augment of DeiT III (arXiv 2204.07118)."""
    randaugment_num_ops: int = 2
    """Number of operations of RandAugment for each image."""
    randaugment_magnitude: int = 9
    """Strength of RandAugment's operations, 0 to 30, as in torchvision."""
    brightness: float = 0.0
    """Colour jitter as in torchvision: the factor of brightness is uniform in 1 - x to 1 + x; 0 is off."""
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """Colour jitter: the hue turns by up to this part of a circle, at most 0.5, in both directions."""
    random_erasing: float = 0.0
    """Probability that a random rectangle of an image is erased (arXiv 1708.04896)."""
    random_erasing_mode: Literal["const", "rand", "pixel"] = "const"
    """What replaces it: the mean, one random colour, or a random colour for each pixel; as in timm."""
    cutout: int = 0
    """Side in pixels of a square that is set to the mean around a random pixel (arXiv 1708.04552); 0 is off."""
    mixup: float = 0.0
    """Parameter of the Beta distribution of mixup's weight (arXiv 1710.09412); 0 is off."""
    cutmix: float = 0.0
    """Parameter of the Beta distribution of CutMix's area (arXiv 1905.04899); 0 is off."""
    mixup_probability: float = 1.0
    """Probability that an example is mixed, by mixup or by CutMix."""
    mixup_switch_probability: float = 0.5
    """Probability of CutMix for an example, if mixup and CutMix are both on."""
    mixup_end: float = 1.0
    """Part of the run's steps after which no example is mixed."""
    num_repeats: int = 1
    """How often each example of a batch occurs in it, augmented differently (arXiv 1901.09335)."""
    train_split: str = "train"
    """Of encoded images; so are all options from here to `max_damaged`."""
    eval_split: str = ""
    """The split that is evaluated; empty: the part that is held out if there is one, `validation`, or `test`."""
    holdout: float = 0.0
    """Share of the training split, evenly spaced, that is not trained on and may be evaluated as split `holdout`."""
    image_size: int = 224
    """Height and width in pixels to which images are cropped and resized."""
    crop_area: float = 0.08
    """Smallest share of an image's area in the random crops of training (arXiv 1409.4842); 1 crops to a square only."""
    eval_crop: float = 0.875
    """Share of the shorter side that the centre crop of evaluation keeps."""
    eval_filter: Literal["bilinear", "bicubic"] = "bicubic"
    """How images are resized in evaluation, antialiased as by Pillow."""
    max_damaged: float = 0.001
    """Largest share of the images of a split that may be unusable; more of them end the run."""
    num_threads: int | None = None
    """Threads of each process that read and decode images; by default one for each of its CPUs."""
    prefetch_steps: int = 4
    """Number of batches that are read ahead."""
    synthetic_num_examples: int = 1024
    synthetic_image_size: int = 32
    synthetic_num_classes: int = 10

    def __post_init__(self) -> None:
        check_values("data", self)
        object.__setattr__(self, "root", data_root("data.root", self.root))
        fits = self.name not in ("", ".", "..") and "/" not in self.name
        check(fits, f"data.name is {self.name!r}: give the name of a folder in data.root, or of a built-in data set")
        for name in (*_COUNTS, "num_threads"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"data.{name} is {value}: it must be at least 1")
        for name in ("crop_area", "eval_crop"):
            value = getattr(self, name)
            check(0 < value <= 1, f"data.{name} is {value}: it must be above 0 and at most 1")
        for name in ("holdout", "max_damaged"):
            value = getattr(self, name)
            check(0 <= value < 1, f"data.{name} is {value}: it must be at least 0 and below 1")
        for name in ("crop_padding", "cutout", "mixup", "cutmix"):
            value = getattr(self, name)
            check(value >= 0, f"data.{name} is {value}: it must not be negative")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            check(low <= value <= high, f"data.{name} is {value}: it must be between {low} and {high}")
        check(self.mixup_probability > 0, "data.mixup_probability is 0: set data.mixup and data.cutmix to 0 instead")
        check(
            0 < self.mixup_switch_probability < 1,
            f"data.mixup_switch_probability is {self.mixup_switch_probability}: it must be between 0 and 1; for one of "
            "mixup and CutMix alone, set the other to 0",
        )
        check(
            self.batch_size % self.num_repeats == 0,
            f"data.batch_size {self.batch_size} is not divisible by data.num_repeats {self.num_repeats}: change one",
        )
        self._check_effects()

    def _check_effects(self) -> None:
        is_randaugment, is_mixed = self.policy == "randaugment", bool(self.mixup or self.cutmix)
        users = (
            (is_randaugment, "data.policy randaugment", ("randaugment_num_ops", "randaugment_magnitude")),
            (self.random_erasing > 0, "data.random_erasing above 0", ("random_erasing_mode",)),
            (is_mixed, "data.mixup or data.cutmix above 0", ("mixup_probability", "mixup_end")),
            (bool(self.mixup and self.cutmix), "data.mixup and data.cutmix above 0", ("mixup_switch_probability",)),
        )
        for is_used, needed, names in users:
            for name in names:
                value, default = getattr(self, name), getattr(DataConfig, name)
                check(
                    is_used or value == default,
                    f"data.{name} is {value}, but has an effect only with {needed}: set that, or leave it at {default}",
                )


@dataclass(frozen=True)
class ModelConfig:
    """The network, and how it computes."""

    name: str = "vit_ti"
    """A name of `gnp_scale.models.registry`."""
    patch_size: int = 16
    pool: Literal["average", "token"] = "average"
    """The input of a vision transformer's classifier: the average over tokens or a class token."""
    stem: Literal["cifar", "imagenet"] = "imagenet"
    """The first layer of a ResNet: a 3x3 convolution, or a 7x7 one with stride and max-pooling."""
    depth: int | None = None
    """Number of transformer blocks, instead of the one of the named network."""
    width: int | None = None
    """Channels of a transformer, instead of those of the named network."""
    num_heads: int | None = None
    dropout: float = 0.0
    drop_path: float = 0.0
    """Probability that the last block is dropped; it rises linearly from 0 at the first."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type in which the network computes; the parameters are float32."""
    attention: AttentionImplementation = "auto"
    """What computes the attention of a transformer. "auto" in bfloat16 is cuDNN on GPUs and Pallas kernels on TPUs,
    where they take the size; else it is XLA."""
    remat: bool = False
    """Recompute activations of each transformer block in the backward pass instead of keeping them."""
    scan_layers: bool = False
    """Stack equal transformer blocks and scan over them: compile time does not grow with depth."""
    num_bn_groups: int = 1
    """Number of groups of consecutive examples of the global batch, each with its own batch statistics. Statistics over
    several devices cost each layer one all-reduce in every forward and every backward pass. A multiple of
    the number of devices (times the number of microbatches) needs none."""

    def __post_init__(self) -> None:
        check_values("model", self)
        for name in ("patch_size", "num_bn_groups"):
            value = getattr(self, name)
            check(value >= 1, f"model.{name} is {value}: it must be at least 1")
        for name in ("dropout", "drop_path"):
            value = getattr(self, name)
            check(0 <= value < 1, f"model.{name} is {value}: it must be in [0, 1)")
        for name in ("depth", "width", "num_heads"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"model.{name} is {value}: it must be at least 1, or None")


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
    metric: Metric = "euclidean"
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
    gate_probability: float = 0.5
    r_schedule: PenaltySchedule = "constant"
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
        for name in ("gate_start", "warmup_steps"):
            value = getattr(self, name)
            check(value >= 0, f"gnp.{name} is {value}: it must not be negative")
        check(
            self.gate_stop is None or self.gate_stop > self.gate_start,
            f"gnp.gate_stop is {self.gate_stop} with gnp.gate_start {self.gate_start}: it must be above that, or None",
        )
        check(0 <= self.gate_probability <= 1, f"gnp.gate_probability is {self.gate_probability}: it must be in [0, 1]")
        check(
            0.001 <= self.ascent_fraction <= 1,
            f"gnp.ascent_fraction is {self.ascent_fraction}: it must be in [0.001, 1]",
        )
        used = {
            "reuse_every": self.direction == "reused",
            "gate_every": self.gate == "every",
            "gate_start": self.gate == "window",
            "gate_stop": self.gate == "window",
            "gate_probability": self.gate == "bernoulli",
        }
        for option, is_used in used.items():
            value, default = getattr(self, option), getattr(GnpConfig, option)
            check(
                is_used or value == default,
                f"gnp.{option} is {value}, but has no effect with gnp.direction {self.direction} and gnp.gate "
                f"{self.gate}: change one of those, or leave it at {default}",
            )
        warms_up = "warmup" in (self.r_schedule, self.alpha_schedule)
        check(
            warms_up == (self.warmup_steps > 0),
            f"gnp.warmup_steps is {self.warmup_steps} with schedules {self.r_schedule} of r and "
            f"{self.alpha_schedule} of alpha: a warm-up needs both a schedule named warmup and a number of steps",
        )


@dataclass(frozen=True)
class OptimConfig:
    """The base optimizer, which takes the penalised gradient."""

    name: OptimizerName = "sgd"
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
    """Momentum of sgd and lars."""
    nesterov: bool = True
    """Nesterov momentum in sgd."""
    b1: float = 0.9
    """Decay of the first moment in adamw and lamb; weight of the moment in a step of lion."""
    b2: float = 0.999
    """Decay of the second moment in adamw and lamb, and of the moment in lion (0.99 in its paper)."""
    eps: float = 1e-8
    """Added to the root of the second moment in adamw and lamb."""
    weight_decay: float = 0.0
    """Decoupled decay of the parameters, times the learning rate."""
    l2_in_loss: float = 0.0
    """Factor of half the squared norm of the decayed parameters, added to the loss (so it enters both gradients)."""
    decay_norm_and_bias: bool = False
    """Apply decay to scales and biases too."""
    clip_norm: float | None = None
    """Largest global norm of the gradient that the optimizer sees."""

    def __post_init__(self) -> None:
        check_values("optim", self)
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
        for name in ("momentum", "b1", "b2"):
            value = getattr(self, name)
            check(0 <= value < 1, f"optim.{name} is {value}: it must be in [0, 1)")
        check(
            self.clip_norm is None or self.clip_norm > 0,
            f"optim.clip_norm is {self.clip_norm}: it must be positive, or None",
        )
        increasing = all(a < b for a, b in zip((0.0, *self.step_boundaries), (*self.step_boundaries, 1.0), strict=True))
        check(increasing, f"optim.step_boundaries is {self.step_boundaries}: give increasing fractions between 0 and 1")


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
    log_every_steps: int = 10
    eval_every_steps: int = 100

    def __post_init__(self) -> None:
        check_values("train", self)
        for name in ("num_steps", "log_every_steps", "eval_every_steps", "accumulate_steps"):
            value = getattr(self, name)
            check(value >= 1, f"train.{name} is {value}: it must be at least 1")
        check(self.num_steps < 2**31, f"train.num_steps is {self.num_steps}: steps are counted in 31 bits")
        check(0 <= self.seed < 2**32, f"train.seed is {self.seed}: it must be in [0, 2**32)")
        check(
            0 <= self.label_smoothing < 1,
            f"train.label_smoothing is {self.label_smoothing}: it must be in [0, 1)",
        )
        check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"train.ema_decay is {self.ema_decay}: it must be between 0 and 1, or None",
        )

    def evaluates_after(self, step: int) -> bool:
        """Whether an evaluation follows `step`."""
        return step % self.eval_every_steps == 0 or step == self.num_steps


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


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on, apart from the machine."""

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    gnp: GnpConfig = field(default_factory=GnpConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    divergence: DivergenceConfig = field(default_factory=DivergenceConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)

    def __post_init__(self) -> None:
        check(
            self.train.gradient_dtype in ("float32", self.model.dtype),
            f"train.gradient_dtype is {self.train.gradient_dtype} with model.dtype {self.model.dtype}: "
            "gradients must not be narrower than the type of the model; set model.dtype bfloat16 as well",
        )
        self._check_schedules()
        check(
            not (self.model.scan_layers and self.optim.name in ("lamb", "lars")),
            f"model.scan_layers stacks blocks into one array, which {self.optim.name} would give one trust ratio: "
            "turn it off, or use another optim.name",
        )
        for name, value in {
            "model.num_bn_groups": self.model.num_bn_groups,
            "gnp.perturb_groups": self.gnp.perturb_groups,
            "train.accumulate_steps": self.train.accumulate_steps,
        }.items():
            check(
                self.data.batch_size % value == 0,
                f"data.batch_size {self.data.batch_size} is not divisible by {name} {value}: change one of them",
            )
        parts, groups = self.train.accumulate_steps, self.gnp.perturb_groups
        check(
            parts % groups == 0 or groups % parts == 0,
            f"train.accumulate_steps {parts} and gnp.perturb_groups {groups}: one must divide the other",
        )

    def _check_schedules(self) -> None:
        num_steps = self.train.num_steps
        # With `gate_stop`, the window may begin after the last step. Some existing run folders have this.
        gate_start = self.gnp.gate_start if self.gnp.gate_stop is None else 0
        schedules = (
            ("optim.warmup_steps", self.optim.warmup_steps, num_steps),
            ("gnp.warmup_steps", self.gnp.warmup_steps, num_steps),
            ("gnp.gate_start", gate_start, num_steps - 1),
        )
        late = [(name, value, largest) for name, value, largest in schedules if value > largest]
        given = " and ".join(f"{name} {value}" for name, value, _ in late)
        flags = " and ".join(f"--{name.replace('_', '-')} N (at most {largest})" for name, _, largest in late)
        check(
            not late, f"train.num_steps {num_steps} is too small for {given}: add {flags}, or raise --train.num-steps"
        )
