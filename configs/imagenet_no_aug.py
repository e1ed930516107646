"""Recipes for ImageNet without strong augmentation: ViT of Chen et al. (arXiv 2106.01548) and GSAM (2203.08065).

Batch 4096, AdamW 3e-3 falling linearly to 3e-5, 10,000 steps of warm-up, weight decay 0.3 (times the learning rate),
clipping at 1.0, sigmoid loss with an initial bias of -10, random crops and flips, the average of all tokens, 300
epochs. These, and rho_max, rho_min and alpha of GSAM, are those of GSAM's table 4 and of its configuration in
big_vision, which trains on 99 % of the training split. Runs evaluate the last 1 %; the results are of the validation
split: `gnp-scale eval RUN --data.eval-split validation`. r of SAM is that of arXiv 2106.01548, from memory. A
perturbation is that of one chip: 64 groups of 64 examples. With larger groups the authors advise a larger r.
"""

from _no_aug import PLAIN, grouped, gsam, trained

from gnp_scale.config import Config, GnpConfig, ModelConfig


def vit_s16_vanilla() -> Config:
    """ViT-S/16 without a penalty, 300 epochs, without strong augmentation.

    Paper: arXiv 2106.01548; arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_s16_vanilla --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper.
    Batch: 4096.
    Result: 74.4 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_s", 16, PLAIN)


def vit_s16_sam() -> Config:
    """ViT-S/16 with SAM, 300 epochs, without strong augmentation.

    Paper: arXiv 2106.01548; arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_s16_sam --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: 78.1 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_s", 16, grouped(r=0.1, alpha=1.0))


def vit_s16_gsam() -> Config:
    """ViT-S/16 with GSAM, 300 epochs, without strong augmentation.

    Paper: arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_s16_gsam --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: 79.5 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_s", 16, gsam(rho_max=0.6, rho_min=0.0, alpha=1.0))


def vit_s16_gnp() -> Config:
    """ViT-S/16 with the penalty on the gradient norm, 300 epochs, without strong augmentation.

    Paper: the method of arXiv 2202.03599; this project's own recipe, with the r of its SAM twin.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_s16_gnp --data.root gs://BUCKET/data
    Hardware: 64 devices; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: none published.
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_s", 16, grouped(r=0.1, alpha=0.8))


def vit_b16_vanilla() -> Config:
    """ViT-B/16 without a penalty, 300 epochs, without strong augmentation.

    Paper: arXiv 2106.01548; arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b16_vanilla --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper.
    Batch: 4096.
    Result: 74.6 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 16, PLAIN)


def vit_b16_sam() -> Config:
    """ViT-B/16 with SAM, 300 epochs, without strong augmentation.

    Paper: arXiv 2106.01548; arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b16_sam --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: 79.9 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 16, grouped(r=0.2, alpha=1.0))


def vit_b16_gsam() -> Config:
    """ViT-B/16 with GSAM, 300 epochs, without strong augmentation.

    Paper: arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b16_gsam --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: 81.0 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 16, gsam(rho_max=0.6, rho_min=0.2, alpha=0.4))


def vit_b16_gnp() -> Config:
    """ViT-B/16 with the penalty on the gradient norm, 300 epochs, without strong augmentation.

    Paper: the method of arXiv 2202.03599; this project's own recipe, with the r of its SAM twin.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b16_gnp --data.root gs://BUCKET/data
    Hardware: 64 devices; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: none published.
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 16, grouped(r=0.2, alpha=0.8))


def vit_b32_vanilla() -> Config:
    """ViT-B/32 without a penalty, 300 epochs, without strong augmentation.

    Paper: arXiv 2106.01548; arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b32_vanilla --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper.
    Batch: 4096.
    Result: 71.4 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 32, PLAIN)


def vit_b32_sam() -> Config:
    """ViT-B/32 with SAM, 300 epochs, without strong augmentation.

    Paper: arXiv 2106.01548; arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b32_sam --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: 73.6 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 32, grouped(r=0.15, alpha=1.0))


def vit_b32_gsam() -> Config:
    """ViT-B/32 with GSAM, 300 epochs, without strong augmentation.

    Paper: arXiv 2203.08065, tables 1 and 4.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b32_gsam --data.root gs://BUCKET/data
    Hardware: 64 TPU chips in the paper; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: 76.8 % top-1 reported (arXiv 2203.08065, table 1).
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 32, gsam(rho_max=0.6, rho_min=0.1, alpha=0.6))


def vit_b32_gnp() -> Config:
    """ViT-B/32 with the penalty on the gradient norm, 300 epochs, without strong augmentation.

    Paper: the method of arXiv 2202.03599; this project's own recipe, with the r of its SAM twin.
    Command: gnp-scale train configs/imagenet_no_aug.py:vit_b32_gnp --data.root gs://BUCKET/data
    Hardware: 64 devices; with as many add --mesh.replica 64 --mesh.fsdp 1.
    Batch: 4096 in 64 groups.
    Result: none published.
    Hours: unknown.
    Run: not run here.
    """
    return _vit("vit_b", 32, grouped(r=0.15, alpha=0.8))


def _vit(name: str, patch_size: int, gnp: GnpConfig) -> Config:
    model = ModelConfig(name=name, patch_size=patch_size, dtype="bfloat16", head_bias=-10.0)
    return trained(model, gnp)
