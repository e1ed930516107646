"""What the recipes without strong augmentation share (arXiv 2106.01548 and 2203.08065)."""

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = round(0.99 * 1_281_167)
BATCH_SIZE = 4096
PEAK, END = 3e-3, 3e-5
NUM_CHIPS = 64
PLAIN = GnpConfig(alpha=0.0)


def grouped(r: float, alpha: float) -> GnpConfig:
    """SAM or the penalty, for the examples of each chip."""
    return GnpConfig(r=r, alpha=alpha, perturb_groups=NUM_CHIPS)


def gsam(rho_max: float, rho_min: float, alpha: float) -> GnpConfig:
    """GSAM, whose radius falls with the learning rate, for the examples of each chip."""
    return GnpConfig(
        r=rho_max, end_r=rho_min, r_schedule="learning_rate", alpha=alpha, blend="gsam", perturb_groups=NUM_CHIPS
    )


def trained(model: ModelConfig, gnp: GnpConfig) -> Config:
    """300 epochs of `model` with `gnp`."""
    num_steps = 300 * NUM_EXAMPLES // BATCH_SIZE
    return Config(
        data=DataConfig(
            name="imagenet", batch_size=BATCH_SIZE, eval_batch_size=2048, holdout=0.01, flip=True, prefetch_steps=2
        ),
        model=model,
        gnp=gnp,
        optim=OptimConfig(
            name="adamw",
            learning_rate=PEAK,
            schedule="linear",
            end_learning_rate=END,
            warmup_steps=10_000,
            weight_decay=0.3,
            clip_norm=1.0,
        ),
        train=TrainConfig(num_steps=num_steps, loss="sigmoid", log_every_steps=50, eval_every_steps=1500),
    )
