"""Recipes for Fashion-MNIST. Get the data with `gnp-scale data download fashion_mnist`, or Debian's package of them."""

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig


def wrn_16_4() -> Config:
    """WideResNet-16-4, 30 epochs.

    Paper: the method of arXiv 2202.03599; the recipe is this project's own.
    Command: gnp-scale train configs/fashion_mnist.py:wrn_16_4
    Hardware: one accelerator.
    Batch: 256 in one group.
    Result: none; the recipe is this project's own.
    Hours: unknown.
    Run: not run here.
    """
    num_steps = 30 * 60_000 // 256
    return Config(
        data=DataConfig(name="fashion_mnist", batch_size=256, eval_batch_size=1024, crop_padding=4, flip=True),
        model=ModelConfig(name="wrn_16_4"),
        gnp=GnpConfig(r=0.1, alpha=0.8),
        optim=OptimConfig(name="sgd", learning_rate=0.1, l2_in_loss=5e-4, clip_norm=5.0),
        train=TrainConfig(num_steps=num_steps, log_every_steps=50, eval_every_steps=num_steps // 30),
    )
