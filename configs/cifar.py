"""Recipes for CIFAR-10; `--data.name cifar100` for CIFAR-100. Get the data with `gnp-scale data download cifar10`.

Settings are those of the authors' scripts (arXiv 2202.03599, github.com/zhaoyang-0204/gnp): batch 256, clip 5.0, cosine
to 0, reflect-pad 4, random crop and flip. These recipes have not been run to the end here: they state no hours, and the
errors are those of the papers.
"""

from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 50_000
BATCH_SIZE = 256
BASIC = DataConfig(name="cifar10", batch_size=BATCH_SIZE, eval_batch_size=1024, crop_padding=4, flip=True)
PENALTY = GnpConfig(r=0.1, alpha=0.8)
# L2 is part of the loss, so that it enters both gradients.
SGD = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, l2_in_loss=1e-3, clip_norm=5.0)


def resnet50() -> Config:
    """ResNet-50 with the stem for small images, 200 epochs.

    Paper: arXiv 2202.03599, section 5. Command: gnp-scale train configs/cifar.py:resnet50. Hardware: one accelerator.
    """
    return _convolutional(ModelConfig(name="resnet50", stem="cifar"))


def wrn_28_10() -> Config:
    """WideResNet-28-10, 200 epochs; reported: an error of 2.52 % on CIFAR-10, and 2.78 % with --gnp.alpha 1 (SAM).

    Paper: arXiv 2202.03599, table 1. Command: gnp-scale train configs/cifar.py:wrn_28_10. Hardware: one accelerator.
    """
    return _convolutional(ModelConfig(name="wrn_28_10"))


def vit_s() -> Config:
    """ViT-S with patches of 4 pixels, 300 epochs, AdamW; reported: an error of 12.40 % on CIFAR-10.

    Paper: arXiv 2406.09723. Command: gnp-scale train configs/cifar.py:vit_s. Hardware: one accelerator.
    """
    return _transformer(PENALTY)


def vit_s_zero_warmup() -> Config:
    """`vit_s` with SAM (alpha = 1) switched on at the end of the learning rate's warm-up; reported: 10.68 %.

    Paper: arXiv 2406.09723, "zero warm-up". Command: gnp-scale train configs/cifar.py:vit_s_zero_warmup.
    Hardware: one accelerator.
    """
    return _transformer(GnpConfig(r=0.1, alpha=1.0, gate="window", gate_start=_steps(epochs=40)))


def _steps(epochs: int) -> int:
    return epochs * NUM_EXAMPLES // BATCH_SIZE


def _convolutional(model: ModelConfig) -> Config:
    return Config(data=BASIC, model=model, gnp=PENALTY, optim=SGD, mesh=MeshConfig(), train=_train(epochs=200))


def _transformer(gnp: GnpConfig) -> Config:
    optim = OptimConfig(
        name="adamw", learning_rate=1e-3, warmup_steps=_steps(epochs=40), weight_decay=0.3, clip_norm=5.0
    )
    return Config(
        data=BASIC,
        model=ModelConfig(name="vit_s", patch_size=4, scan_layers=True),
        gnp=gnp,
        optim=optim,
        train=_train(epochs=300),
    )


def _train(epochs: int) -> TrainConfig:
    return TrainConfig(num_steps=_steps(epochs), log_every_steps=50, eval_every_steps=_steps(epochs=1))
