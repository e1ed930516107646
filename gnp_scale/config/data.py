"""Section `data`: which examples, how many at once, and how they are augmented."""

from dataclasses import dataclass, replace
from typing import Literal

from gnp_scale.checks import check, check_values, data_root

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
    "num_examples",
    "num_threads",
)
_CHOICE = (
    "num_examples",
    "label_noise",
    "draw_seed",
    "holdout",
    "eval_split",
    "train_split",
    "eval_labels",
    "synthetic_num_examples",
    "synthetic_image_size",
    "synthetic_num_classes",
)
"""Options that choose examples of a data set, or change their labels."""
_RANGES = {
    "randaugment_num_ops": (1, 10),
    "randaugment_magnitude": (0, RANDAUGMENT_LEVELS - 1),
    **dict.fromkeys(
        ("brightness", "contrast", "saturation", "random_erasing", "mixup_probability", "mixup_end"), (0, 1)
    ),
    "hue": (0, 0.5),
    "crop_padding": (0, 1024),
}


@dataclass(frozen=True)
class DataConfig:
    """Which examples, how many at once, and how they are augmented."""

    name: str = "digits"
    """digits, fashion_mnist, cifar10, cifar100, synthetic, or the name of a folder of encoded images in `root`."""
    root: str = "data"
    """Folder that holds one folder for each data set: a path, gs://bucket/folder or s3://bucket/folder."""
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
    num_examples: int | None = None
    """Number of training examples that are drawn at random; None: all."""
    label_noise: float = 0.0
    """Share of the drawn training labels, also of those held out, that are replaced by another class, all of which are
    equally probable."""
    draw_seed: int = 0
    """What decides which examples `num_examples` draws, and which labels `label_noise` replaces."""
    holdout: float = 0.0
    """Share of the training split, evenly spaced, that is not trained on and may be evaluated as split `holdout`."""
    eval_split: str = ""
    """The split that is evaluated; empty: the part that is held out if there is one, `validation`, or `test`."""
    train_split: str = "train"
    """Of encoded images; so are all options from here to `max_damaged`."""
    eval_labels: str = ""
    """A JSON file with all right answers of each evaluated image, such as ReaL's; then `eval/real` is reported."""
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
    """Threads of each process that read and decode images; by default one for each of its CPUs, four for a bucket."""
    prefetch_steps: int = 4
    """Number of batches that are read and sent to the devices before they are needed."""
    synthetic_num_examples: int = 1024
    synthetic_image_size: int = 32
    synthetic_num_classes: int = 10

    def __post_init__(self) -> None:
        check_values("data", self)
        object.__setattr__(self, "root", data_root("data.root", self.root))
        fits = self.name not in ("", ".", "..") and "/" not in self.name
        check(fits, f"data.name is {self.name!r}: give the name of a folder in data.root, or of a built-in data set")
        for name in _COUNTS:
            value = getattr(self, name)
            check(value is None or value >= 1, f"data.{name} is {value}: it must be at least 1")
        for name in ("crop_area", "eval_crop"):
            value = getattr(self, name)
            check(0 < value <= 1, f"data.{name} is {value}: it must be above 0 and at most 1")
        check(0 <= self.draw_seed < 2**32, f"data.draw_seed is {self.draw_seed}: it must be in [0, 2**32)")
        for name in ("holdout", "max_damaged", "label_noise"):
            value = getattr(self, name)
            check(0 <= value < 1, f"data.{name} is {value}: it must be at least 0 and below 1")
        for name in ("cutout", "mixup", "cutmix"):
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

    def with_all_examples(self) -> "DataConfig":
        """Itself, without what chooses examples or changes labels: a choice for one data set fits no other."""
        return replace(self, **{name: getattr(DataConfig, name) for name in _CHOICE})

    @property
    def draws(self) -> bool:
        """Whether `draw_seed` decides anything."""
        return self.num_examples is not None or self.label_noise > 0

    def _check_effects(self) -> None:
        is_randaugment, is_mixed = self.policy == "randaugment", bool(self.mixup or self.cutmix)
        users = (
            (is_randaugment, "data.policy randaugment", ("randaugment_num_ops", "randaugment_magnitude")),
            (self.random_erasing > 0, "data.random_erasing above 0", ("random_erasing_mode",)),
            (is_mixed, "data.mixup or data.cutmix above 0", ("mixup_probability", "mixup_end")),
            (self.draws, "data.num_examples or data.label_noise", ("draw_seed",)),
            (bool(self.mixup and self.cutmix), "data.mixup and data.cutmix above 0", ("mixup_switch_probability",)),
        )
        for is_used, needed, names in users:
            for name in names:
                value, default = getattr(self, name), getattr(DataConfig, name)
                check(
                    is_used or value == default,
                    f"data.{name} is {value}, but has an effect only with {needed}: set that, or leave it at {default}",
                )
