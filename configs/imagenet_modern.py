"""Recipes for ImageNet (ILSVRC 2012) with heavy augmentation: Swin, ConvNeXt, and ResNet-50 with timm's procedures.

They repeat published recipes without the penalty, in one pass. To add it, give `--gnp.alpha 0.8 --gnp.perturb-groups N`
(r is 0.05) with N groups of 64 to 128 examples (docs/method.md, Groups). What differs here: each example draws its own
mixup or CutMix, with the next example; RandAugment is torchvision's, with 3 times the magnitude of timm's and without
its noise (docs/augmentation.md).
"""

from dataclasses import replace

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 1_281_167
PLAIN = GnpConfig(alpha=0.0)
CROPPED = DataConfig(
    name="imagenet",
    batch_size=4096,
    eval_batch_size=2048,
    flip=True,
    policy="randaugment",
    cutmix=1.0,
    prefetch_steps=2,
)
HEAVY = replace(CROPPED, randaugment_magnitude=27, mixup=0.8, random_erasing=0.25, random_erasing_mode="pixel")
"""rand-m9-mstd0.5-inc1 of timm, without colour jitter, which timm drops beside RandAugment."""
A_CLASS = replace(CROPPED, mixup=0.1, eval_crop=0.95)


def swin_t() -> Config:
    """Swin-T, 300 epochs.

    Paper: arXiv 2103.14030; config.py and configs/ of its repository.
    Command: gnp-scale train configs/imagenet_modern.py:swin_t --data.root gs://BUCKET/data
    Hardware: 8 GPUs.
    Batch: 1024.
    Result: 81.2 % top-1 reported.
    Hours: unknown.
    Run: not run here.
    """
    data = replace(HEAVY, batch_size=1024)
    optim = _adamw(1e-3, end=1e-5, data=data, clip_norm=5.0)
    model = ModelConfig(name="swin_t", dtype="bfloat16", drop_path=0.2)
    return Config(data=data, model=model, gnp=PLAIN, optim=optim, train=_train(300, data, label_smoothing=0.1))


def swin_b() -> Config:
    """Swin-B, 300 epochs.

    Paper: arXiv 2103.14030; config.py and configs/ of its repository.
    Command: gnp-scale train configs/imagenet_modern.py:swin_b --data.root gs://BUCKET/data
    Hardware: 8 GPUs.
    Batch: 1024.
    Result: 83.5 % top-1 reported.
    Hours: unknown.
    Run: not run here.
    """
    data = replace(HEAVY, batch_size=1024)
    optim = _adamw(1e-3, end=1e-5, data=data, clip_norm=5.0)
    model = ModelConfig(name="swin_b", dtype="bfloat16", drop_path=0.5)
    return Config(data=data, model=model, gnp=PLAIN, optim=optim, train=_train(300, data, label_smoothing=0.1))


def convnext_t() -> Config:
    """ConvNeXt-T, 300 epochs, evaluated with the average of its parameters.

    Paper: arXiv 2201.03545; TRAINING.md and main.py of its repository.
    Command: gnp-scale train configs/imagenet_modern.py:convnext_t --data.root gs://BUCKET/data
    Hardware: 32 GPUs.
    Batch: 4096.
    Result: 82.1 % top-1 reported.
    Hours: unknown.
    Run: not run here.
    """
    model = ModelConfig(name="convnext_t", dtype="bfloat16", drop_path=0.1)
    train = replace(_train(300, HEAVY, label_smoothing=0.1), ema_decay=0.9999)
    return Config(data=HEAVY, model=model, gnp=PLAIN, optim=_adamw(4e-3, end=1e-6, data=HEAVY), train=train)


def convnext_b() -> Config:
    """ConvNeXt-B, 300 epochs, evaluated with the average of its parameters.

    Paper: arXiv 2201.03545; TRAINING.md and main.py of its repository.
    Command: gnp-scale train configs/imagenet_modern.py:convnext_b --data.root gs://BUCKET/data
    Hardware: 32 GPUs.
    Batch: 4096.
    Result: 83.8 % top-1 reported.
    Hours: unknown.
    Run: not run here.
    """
    model = ModelConfig(name="convnext_b", dtype="bfloat16", drop_path=0.5)
    train = replace(_train(300, HEAVY, label_smoothing=0.1), ema_decay=0.9999)
    return Config(data=HEAVY, model=model, gnp=PLAIN, optim=_adamw(4e-3, end=1e-6, data=HEAVY), train=train)


def resnet50_a2() -> Config:
    """ResNet-50 with procedure A2 of timm, 300 epochs, without its stochastic depth of 0.05.

    Paper: arXiv 2110.00476, table 2 (target threshold 0.2, clipping at 1.0: from memory);
        open-mmlab/mmpretrain, configs/resnet/resnet50_8xb256-rsb-a2-300e_in1k.py.
    Command: gnp-scale train configs/imagenet_modern.py:resnet50_a2 --data.root gs://BUCKET/data
    Hardware: 4 GPUs (from memory).
    Batch: 2016, the nearest to the published 2048 that 3 repeats and 32 devices divide.
    Result: 79.8 % top-1 reported (from memory).
    Hours: unknown.
    Run: not run here.
    """
    data = replace(A_CLASS, batch_size=2016, num_repeats=3, randaugment_magnitude=21)
    return _a_class(data, epochs=300, learning_rate=5e-3)


def resnet50_a3() -> Config:
    """ResNet-50 with procedure A3 of timm, 100 epochs at 160 pixels.

    Paper: arXiv 2110.00476, table 2 (target threshold 0.2, clipping at 1.0: from memory);
        open-mmlab/mmpretrain, configs/resnet/resnet50_8xb256-rsb-a3-100e_in1k.py.
    Command: gnp-scale train configs/imagenet_modern.py:resnet50_a3 --data.root gs://BUCKET/data
    Hardware: 4 GPUs (from memory).
    Batch: 2048.
    Result: 78.1 % top-1 reported (from memory) at 224 pixels: gnp-scale eval RUN --data.image-size 224.
    Hours: unknown.
    Run: not run here.
    """
    data = replace(A_CLASS, batch_size=2048, image_size=160, randaugment_magnitude=18)
    return _a_class(data, epochs=100, learning_rate=8e-3)


def _a_class(data: DataConfig, epochs: int, learning_rate: float) -> Config:
    """Binary cross-entropy, in which each class with more than a fifth of a mixed image is right."""
    optim = OptimConfig(
        name="lamb",
        learning_rate=learning_rate,
        end_learning_rate=1e-6,
        warmup_steps=_steps(5, data),
        weight_decay=0.02,
        clip_norm=1.0,  # The default of timm's LAMB (max_grad_norm).
    )
    model = ModelConfig(name="resnet50", dtype="bfloat16", num_bn_groups=32)
    train = replace(_train(epochs, data), loss="bce", target_threshold=0.2)
    return Config(data=data, model=model, gnp=PLAIN, optim=optim, train=train)


def _adamw(learning_rate: float, end: float, data: DataConfig, clip_norm: float | None = None) -> OptimConfig:
    return OptimConfig(
        name="adamw",
        learning_rate=learning_rate,
        end_learning_rate=end,
        warmup_steps=_steps(20, data),
        weight_decay=0.05,
        clip_norm=clip_norm,
    )


def _steps(epochs: int, data: DataConfig) -> int:
    """Steps of `epochs` epochs; with repeats an epoch has as many steps as without, as in timm."""
    return epochs * round((1 - data.holdout) * NUM_EXAMPLES) // data.batch_size


def _train(epochs: int, data: DataConfig, label_smoothing: float = 0.0) -> TrainConfig:
    return TrainConfig(
        num_steps=_steps(epochs, data),
        log_every_steps=50,
        eval_every_steps=5 * _steps(1, data),
        label_smoothing=label_smoothing,
    )
