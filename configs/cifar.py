"""The authors' recipes for CIFAR-10. `gnp-scale data download cifar10` gets the data; cifar100.py has CIFAR-100.

Values are those of the scripts in github.com/zhaoyang-0204/gnp: clip 5.0, cosine to 0, reflect-pad 4, crop and flip. A
function named `..._as_released` also has the code's blend, its groups and its decay of all parameters
(`_released.py`). What differs from the code: mixup draws a weight for each example, and a policy acts after the crop.
Attention has no dropout. With Shake-Shake and ShakeDrop both passes have consistent coefficients, in the code only the
first one.
"""

from dataclasses import replace

from _released import as_released

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 50_000
BASIC = DataConfig(name="cifar10", batch_size=256, eval_batch_size=1024, crop_padding=4, flip=True)
PENALTY = GnpConfig(r=0.1, alpha=0.8)
# L2 is part of the loss, so that it enters both gradients.
SGD = OptimConfig(name="sgd", learning_rate=0.1, momentum=0.9, nesterov=True, l2_in_loss=1e-3, clip_norm=5.0)
ADAMW = OptimConfig(name="adamw", learning_rate=1e-3, weight_decay=0.3, clip_norm=5.0)
VIT_S = ModelConfig("vit_s", patch_size=4, pool="token", dropout=0.1)
PYRAMIDNET = ModelConfig("pyramidnet_272_200", shake_drop=0.5, shake_gradient="consistent")


def resnet50() -> Config:
    """ResNet-50 with the stem for small images, 200 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/resnet-cifar.sh.
    Command: gnp-scale train configs/cifar.py:resnet50
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _convolutional(ModelConfig("resnet50", stem="cifar"), epochs=200)


def resnet50_as_released() -> Config:
    """ResNet-50 with the stem for small images, 200 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/resnet-cifar.sh.
    Command: gnp-scale train configs/cifar.py:resnet50_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(resnet50())


def wrn_28_10() -> Config:
    """WideResNet-28-10, 200 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/wideresnet-cifar.sh.
    Command: gnp-scale train configs/cifar.py:wrn_28_10
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: an error of 2.52 % reported, and 2.78 % with SAM (from a summary of the paper, not the paper).
    Hours: unknown.
    Run: not run here.
    """
    return _convolutional(ModelConfig("wrn_28_10"), epochs=200)


def wrn_28_10_as_released() -> Config:
    """WideResNet-28-10, 200 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/wideresnet-cifar.sh.
    Command: gnp-scale train configs/cifar.py:wrn_28_10_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: an error of 2.52 % reported, and 2.78 % with SAM (from a summary of the paper, not the paper).
    Hours: unknown.
    Run: not run here.
    """
    return as_released(wrn_28_10())


def shake_shake() -> Config:
    """Shake-Shake 26 2x96d, 1800 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/wideresnet-ss-cifar.sh.
    Command: gnp-scale train configs/cifar.py:shake_shake
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _convolutional(ModelConfig("shake_shake_26_2x96d", shake_gradient="consistent"), epochs=1800)


def shake_shake_as_released() -> Config:
    """Shake-Shake 26 2x96d, 1800 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/wideresnet-ss-cifar.sh.
    Command: gnp-scale train configs/cifar.py:shake_shake_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(shake_shake())


def pyramidnet() -> Config:
    """PyramidNet-272-200 with ShakeDrop, AutoAugment, mixup and cutout, 1800 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/pyramidnet-sd-cifar.sh.
    Command: gnp-scale train configs/cifar.py:pyramidnet
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 128 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return replace(
        _convolutional(PYRAMIDNET, epochs=1800, batch_size=128),
        data=replace(BASIC, batch_size=128, policy="autoaugment_cifar10", mixup=1.0, cutout=16),
        optim=replace(SGD, learning_rate=0.05, l2_in_loss=5e-4),
    )


def pyramidnet_as_released() -> Config:
    """PyramidNet-272-200 with ShakeDrop, AutoAugment, mixup and cutout, 1800 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/pyramidnet-sd-cifar.sh.
    Command: gnp-scale train configs/cifar.py:pyramidnet_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 128 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(pyramidnet())


def vit_s() -> Config:
    """ViT-S with patches of 4 pixels, 300 epochs, AdamW without warm-up.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vit-cifar-basic.sh.
    Command: gnp-scale train configs/cifar.py:vit_s
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: an error of 12.40 % reported (README of the code, which does not say whether with warm-up).
    Hours: unknown.
    Run: not run here.
    """
    return _transformer(ADAMW, epochs=300)


def vit_s_as_released() -> Config:
    """ViT-S with patches of 4 pixels, 300 epochs, AdamW without warm-up, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vit-cifar-basic.sh.
    Command: gnp-scale train configs/cifar.py:vit_s_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: an error of 12.40 % reported (README of the code, which does not say whether with warm-up).
    Hours: unknown.
    Run: not run here.
    """
    return as_released(vit_s(), has_batch_norm=False)


def vit_s_heavy() -> Config:
    """ViT-S with patches of 4 pixels and mixup, 1200 epochs, AdamW without warm-up.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vit_cifar_heavy.sh.
    Command: gnp-scale train configs/cifar.py:vit_s_heavy
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: an error below 5.0 % reported (comment in the script).
    Hours: unknown.
    Run: not run here.
    """
    return replace(
        _transformer(replace(ADAMW, learning_rate=5e-4, weight_decay=0.03), epochs=1200),
        data=replace(BASIC, mixup=1.0),
    )


def vit_s_heavy_as_released() -> Config:
    """ViT-S with patches of 4 pixels and mixup, 1200 epochs, AdamW without warm-up, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vit_cifar_heavy.sh.
    Command: gnp-scale train configs/cifar.py:vit_s_heavy_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: an error below 5.0 % reported (comment in the script).
    Hours: unknown.
    Run: not run here.
    """
    return as_released(vit_s_heavy(), has_batch_norm=False)


def vit_s_zero_warmup() -> Config:
    """ViT-S with SAM from the end of the learning rate's warm-up of 40 epochs on, 300 epochs, AdamW.

    Paper: arXiv 2406.09723; github.com/zhaoyang-0204/gnp, recipes/vit-cifar-basic-grwarmup.sh.
    Command: gnp-scale train configs/cifar.py:vit_s_zero_warmup
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: an error of 10.68 % reported (README of the code).
    Hours: unknown.
    Run: not run here.
    """
    return replace(
        _transformer(replace(ADAMW, warmup_steps=_steps(epochs=40)), epochs=300),
        gnp=GnpConfig(r=0.1, alpha=1.0, gate="window", gate_start=_steps(epochs=40)),
    )


def vit_s_zero_warmup_as_released() -> Config:
    """ViT-S with SAM from the end of the learning rate's warm-up of 40 epochs on, 300 epochs, AdamW, as released.

    Paper: arXiv 2406.09723; github.com/zhaoyang-0204/gnp, recipes/vit-cifar-basic-grwarmup.sh.
    Command: gnp-scale train configs/cifar.py:vit_s_zero_warmup_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: an error of 10.68 % reported (README of the code).
    Hours: unknown.
    Run: not run here.
    """
    return as_released(vit_s_zero_warmup(), has_batch_norm=False)


def _steps(epochs: int, batch_size: int = 256) -> int:
    return epochs * (NUM_EXAMPLES // batch_size)  # The code drops the rest of each epoch.


def _convolutional(model: ModelConfig, epochs: int, batch_size: int = 256) -> Config:
    return Config(data=BASIC, model=model, gnp=PENALTY, optim=SGD, train=_train(epochs, batch_size))


def _transformer(optim: OptimConfig, epochs: int) -> Config:
    return Config(data=BASIC, model=VIT_S, gnp=PENALTY, optim=optim, train=_train(epochs))


def _train(epochs: int, batch_size: int = 256) -> TrainConfig:
    return TrainConfig(num_steps=_steps(epochs, batch_size), log_every_steps=50, eval_every_steps=_steps(1, batch_size))
