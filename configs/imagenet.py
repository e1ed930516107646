"""Recipes for ImageNet (ILSVRC 2012), in any form that docs/data.md describes: a folder `imagenet` in data.root.

`resnet50` has the penalty. The others repeat published recipes without it, in one pass. To add it, give
`--gnp.alpha 0.8 --gnp.perturb-groups N` (r is 0.05) with N groups of 64 to 128 examples (docs/method.md, Groups). Their
sources are the papers' repositories. What differs here: each example draws its own mixup or CutMix, with the next
example; RandAugment is torchvision's, with 3 times the magnitude of big_vision's (docs/augmentation.md).
"""

from dataclasses import replace

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 1_281_167
PLAIN = GnpConfig(alpha=0.0)
CROPPED = DataConfig(name="imagenet", batch_size=4096, eval_batch_size=2048, flip=True, prefetch_steps=2)
"""Random resized crops (arXiv 1409.4842) and flips."""
AUGREG = OptimConfig(
    name="adamw", learning_rate=1e-3, warmup_steps=10_000, weight_decay=0.1, clip_norm=1.0, moment_dtype="bfloat16"
)
"""Of big_vision, which does not multiply its decay of 1e-4 by the highest learning rate."""


def resnet50() -> Config:
    """ResNet-50 with the penalty on the gradient norm, 100 epochs, as SAM's recipe of arXiv 2010.01412.

    Paper: arXiv 2010.01412, table 2 and appendix; alpha 0.8 of arXiv 2202.03599, whose own ImageNet recipe differs.
    Command: gnp-scale train configs/imagenet.py:resnet50 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: none published; 22.5 % top-1 error reported with SAM (--gnp.alpha 1), 22.9 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return Config(
        data=CROPPED,
        model=ModelConfig(name="resnet50", dtype="bfloat16", num_bn_groups=32),
        gnp=GnpConfig(r=0.05, alpha=0.8, perturb_groups=32),
        optim=OptimConfig(
            name="sgd",
            learning_rate=1.0,
            momentum=0.9,
            nesterov=True,
            warmup_steps=_steps(5, CROPPED),
            l2_in_loss=1e-4,
        ),
        train=_train(100, CROPPED, label_smoothing=0.1),
    )


def vit_s16_90() -> Config:
    """ViT-S/16, 90 epochs, the plain baseline of big_vision.

    Paper: arXiv 2205.01580; big_vision/configs/vit_s16_i1k.py.
    Command: gnp-scale train configs/imagenet.py:vit_s16_90 --data.root gs://BUCKET/data
    Hardware: 8 TPUv3 cores.
    Batch: 1024.
    Result: 76.5 % top-1 reported.
    Hours: 6 to 7 on TPUv3-8 (big_vision).
    Run: not run here.
    """
    return _simple_vit(epochs=90)


def vit_s16_300() -> Config:
    """ViT-S/16, 300 epochs, the plain baseline of big_vision.

    Paper: arXiv 2205.01580; big_vision/configs/vit_s16_i1k.py.
    Command: gnp-scale train configs/imagenet.py:vit_s16_300 --data.root gs://BUCKET/data
    Hardware: 8 TPUv3 cores.
    Batch: 1024.
    Result: 80 % top-1 reported (abstract).
    Hours: less than 24 on TPUv3-8 (abstract).
    Run: not run here.
    """
    return _simple_vit(epochs=300)


def vit_l16() -> Config:
    """ViT-L/16, 300 epochs, with the augmentation "medium2" of AugReg, whose magnitude of 15 is 10 here.

    Paper: arXiv 2106.10270; big_vision/configs/vit_i1k.py, variant L/16.
    Command: gnp-scale train configs/imagenet.py:vit_l16 --data.root gs://BUCKET/data
    Hardware: unknown.
    Batch: 4096.
    Result: none in that file.
    Hours: unknown.
    Run: not run here.
    """
    data = replace(CROPPED, holdout=0.01, policy="randaugment", randaugment_magnitude=30, mixup=0.5)
    model = ModelConfig(name="vit_l", pool="token", rep_layer=True, dtype="bfloat16", scan_layers=True, remat="block")
    return Config(data=data, model=model, gnp=PLAIN, optim=AUGREG, train=_train(300, data))


def deit3_s16() -> Config:
    """DeiT-III S/16, 800 epochs.

    Paper: arXiv 2204.07118; README_revenge.md and engine.py of its repository; clipping is FusedLAMB's default.
    Command: gnp-scale train configs/imagenet.py:deit3_s16 --data.root gs://BUCKET/data
    Hardware: 8 GPUs.
    Batch: 2016, the nearest to the published 2048 that 3 repeats and 32 devices divide.
    Result: 81.4 % top-1 reported.
    Hours: unknown.
    Run: not run here.
    """
    return _deit("deit3_s", image_size=224, learning_rate=4e-3, drop_path=0.05)


def deit3_b16() -> Config:
    """DeiT-III B/16 at 192 pixels, 800 epochs; finetune.py:deit3_b16 goes on at 224.

    Paper: arXiv 2204.07118; README_revenge.md and engine.py of its repository; clipping is FusedLAMB's default.
    Command: gnp-scale train configs/imagenet.py:deit3_b16 --data.root gs://BUCKET/data
    Hardware: 8 GPUs.
    Batch: 2016, the nearest to the published 2048 that 3 repeats and 32 devices divide.
    Result: 83.8 % top-1 reported after the fine-tuning at 224.
    Hours: unknown.
    Run: not run here.
    """
    return _deit("deit3_b", image_size=192, learning_rate=3e-3, drop_path=0.2)


def _simple_vit(epochs: int) -> Config:
    data = replace(CROPPED, batch_size=1024, holdout=0.01, policy="randaugment", randaugment_magnitude=30, mixup=0.2)
    model = ModelConfig(name="vit_s", position="sincos2d", rep_layer=True, dtype="bfloat16")
    return Config(data=data, model=model, gnp=PLAIN, optim=AUGREG, train=_train(epochs, data))


def _deit(name: str, image_size: int, learning_rate: float, drop_path: float) -> Config:
    """Binary cross-entropy, in which each class of a mixed image is right (engine.py of DeiT's repository)."""
    data = replace(
        CROPPED,
        batch_size=2016,
        num_repeats=3,
        image_size=image_size,
        policy="three_augment",
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        mixup=0.8,
        cutmix=1.0,
        eval_crop=1.0,
    )
    model = ModelConfig(name=name, pool="token", dtype="bfloat16", drop_path=drop_path)
    optim = OptimConfig(
        name="lamb",
        learning_rate=learning_rate,
        end_learning_rate=1e-5,
        warmup_steps=_steps(5, data),
        weight_decay=0.05,
        clip_norm=1.0,  # The default of apex's FusedLAMB (max_grad_norm).
    )
    train = replace(_train(800, data), loss="bce", target_threshold=0.0)
    return Config(data=data, model=model, gnp=PLAIN, optim=optim, train=train)


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
