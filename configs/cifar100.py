"""The authors' recipes for CIFAR-100: those of cifar.py, with which their scripts share all values.

Get the data with `gnp-scale data download cifar100`.
"""

from dataclasses import replace

import cifar
from _released import as_released

from gnp_scale.config import Config


def resnet50() -> Config:
    """ResNet-50 with the stem for small images, 200 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/resnet-cifar.sh.
    Command: gnp-scale train configs/cifar100.py:resnet50
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _on_cifar100(cifar.resnet50())


def resnet50_as_released() -> Config:
    """ResNet-50 with the stem for small images, 200 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/resnet-cifar.sh.
    Command: gnp-scale train configs/cifar100.py:resnet50_as_released
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
    Command: gnp-scale train configs/cifar100.py:wrn_28_10
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _on_cifar100(cifar.wrn_28_10())


def wrn_28_10_as_released() -> Config:
    """WideResNet-28-10, 200 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/wideresnet-cifar.sh.
    Command: gnp-scale train configs/cifar100.py:wrn_28_10_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(wrn_28_10())


def shake_shake() -> Config:
    """Shake-Shake 26 2x96d, 1800 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/wideresnet-ss-cifar.sh.
    Command: gnp-scale train configs/cifar100.py:shake_shake
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _on_cifar100(cifar.shake_shake())


def shake_shake_as_released() -> Config:
    """Shake-Shake 26 2x96d, 1800 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/wideresnet-ss-cifar.sh.
    Command: gnp-scale train configs/cifar100.py:shake_shake_as_released
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
    Command: gnp-scale train configs/cifar100.py:pyramidnet
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 128 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _on_cifar100(cifar.pyramidnet())


def pyramidnet_as_released() -> Config:
    """PyramidNet-272-200 with ShakeDrop, AutoAugment, mixup and cutout, 1800 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/pyramidnet-sd-cifar.sh.
    Command: gnp-scale train configs/cifar100.py:pyramidnet_as_released
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
    Command: gnp-scale train configs/cifar100.py:vit_s
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; neither paper's cell could be read.
    Hours: unknown.
    Run: not run here.
    """
    return _on_cifar100(cifar.vit_s())


def vit_s_as_released() -> Config:
    """ViT-S with patches of 4 pixels, 300 epochs, AdamW without warm-up, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vit-cifar-basic.sh.
    Command: gnp-scale train configs/cifar100.py:vit_s_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: unknown; neither paper's cell could be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(vit_s(), has_batch_norm=False)


def vit_s_heavy() -> Config:
    """ViT-S with patches of 4 pixels and mixup, 1200 epochs, AdamW without warm-up.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vit_cifar_heavy.sh.
    Command: gnp-scale train configs/cifar100.py:vit_s_heavy
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _on_cifar100(cifar.vit_s_heavy())


def vit_s_heavy_as_released() -> Config:
    """ViT-S with patches of 4 pixels and mixup, 1200 epochs, AdamW without warm-up, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vit_cifar_heavy.sh.
    Command: gnp-scale train configs/cifar100.py:vit_s_heavy_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(vit_s_heavy(), has_batch_norm=False)


def vit_s_zero_warmup() -> Config:
    """ViT-S with SAM from the end of the learning rate's warm-up of 40 epochs on, 300 epochs, AdamW.

    Paper: arXiv 2406.09723; github.com/zhaoyang-0204/gnp, recipes/vit-cifar-basic-grwarmup.sh.
    Command: gnp-scale train configs/cifar100.py:vit_s_zero_warmup
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _on_cifar100(cifar.vit_s_zero_warmup())


def vit_s_zero_warmup_as_released() -> Config:
    """ViT-S with SAM from the end of the learning rate's warm-up of 40 epochs on, 300 epochs, AdamW, as released.

    Paper: arXiv 2406.09723; github.com/zhaoyang-0204/gnp, recipes/vit-cifar-basic-grwarmup.sh.
    Command: gnp-scale train configs/cifar100.py:vit_s_zero_warmup_as_released
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(vit_s_zero_warmup(), has_batch_norm=False)


def _on_cifar100(config: Config) -> Config:
    return replace(config, data=replace(config.data, name="cifar100"))
