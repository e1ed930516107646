"""Recipes for ImageNet (ILSVRC 2012), in any form that docs/data.md describes: a folder `imagenet` in data.root.

Nothing here has been run to the end: the machines of this project have no accelerator. What the papers report is named.
"""

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 1_281_167
BATCH_SIZE = 4096
CROPPED = DataConfig(name="imagenet", batch_size=BATCH_SIZE, eval_batch_size=2048, flip=True, prefetch_steps=2)
"""Random resized crops (arXiv 1409.4842) and flips."""


def resnet50() -> Config:
    """ResNet-50, 100 epochs; reported with SAM (--gnp.alpha 1): an error of 22.5 %, without a penalty 22.9 %.

    Paper: arXiv 2010.01412, table 2 and appendix (batch 4096, learning rate 1.0, weight decay 1e-4, r 0.05, label
    smoothing 0.1); alpha 0.8 as in arXiv 2202.03599, whose own table for ImageNet was not at hand.
    Command: gnp-scale train configs/imagenet.py:resnet50 --data.root gs://BUCKET/data.
    Hardware: 32 TPU cores in the paper, which perturbs for each core: --gnp.perturb-groups 32.
    """
    return Config(
        data=CROPPED,
        model=ModelConfig(name="resnet50", dtype="bfloat16", num_bn_groups=32),
        gnp=GnpConfig(r=0.05, alpha=0.8),
        optim=OptimConfig(
            name="sgd", learning_rate=1.0, momentum=0.9, nesterov=True, warmup_steps=_steps(5), l2_in_loss=1e-4
        ),
        train=_train(epochs=100, label_smoothing=0.1),
    )


def vit_b() -> Config:
    """ViT-B/16 without strong augmentation, 300 epochs; reported with SAM: 79.9 %, without a penalty 74.6 %.

    Paper: arXiv 2106.01548 and 2203.08065, table 1 (batch 4096, AdamW 3e-3, weight decay 0.3, clipping at 1.0, 10,000
    steps of warm-up, Inception crops and flips). They use a sigmoid loss, and this recipe the softmax.
    Command: gnp-scale train configs/imagenet.py:vit_b --data.root gs://BUCKET/data.
    Hardware: 64 TPU chips in the paper.
    """
    return Config(
        data=CROPPED,
        model=ModelConfig(name="vit_b", patch_size=16, dtype="bfloat16", scan_layers=True),
        gnp=GnpConfig(r=0.2, alpha=1.0),
        optim=OptimConfig(name="adamw", learning_rate=3e-3, warmup_steps=10_000, weight_decay=0.3, clip_norm=1.0),
        train=_train(epochs=300),
    )


def _steps(epochs: int) -> int:
    return epochs * NUM_EXAMPLES // BATCH_SIZE


def _train(epochs: int, label_smoothing: float = 0.0) -> TrainConfig:
    return TrainConfig(
        num_steps=_steps(epochs),
        log_every_steps=50,
        eval_every_steps=_steps(1) * 5,
        label_smoothing=label_smoothing,
    )
