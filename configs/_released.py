"""The experiment that the authors' released code runs, where it differs from the paper's text."""

from dataclasses import replace

from gnp_scale.config import Config

NUM_DEVICES = 4
"""Devices of the authors. Neither paper nor code states it: the scripts suggest `CUDA_VISIBLE_DEVICES=0,1,2,3`."""


def as_released(config: Config, *, has_batch_norm: bool = True) -> Config:
    """`config` as the code of github.com/zhaoyang-0204/gnp computes it, at commit e803362.

    It blends the perturbed gradient with the gradient divided by its norm, (1 - alpha) g1 / ||g1|| + alpha g2. Each
    device perturbs for its own part of the batch, and takes batch statistics of it. L2 in the loss and AdamW's decay
    act on all parameters.
    """
    num_bn_groups = NUM_DEVICES if has_batch_norm else 1
    return replace(
        config,
        model=replace(config.model, num_bn_groups=num_bn_groups),
        gnp=replace(config.gnp, blend="unit_norm", perturb_groups=NUM_DEVICES),
        optim=replace(config.optim, decay_norm_and_bias=True),
    )
