"""Recipes for fine-tuning on ImageNet from pretrained weights, which `--model.init-from FILE` names.

FILE is for the same network: .safetensors of timm, or .npz of big_vision. Position embeddings are resampled to the size
of the images. `--model.init-allow "head.*"` leaves out a classifier for other classes, which then begins anew. All
recipes are plain; `--gnp.alpha 0.8 --gnp.perturb-groups 8` adds the penalty (fine-tuning with SAM: arXiv 2206.06232).
configs/grocery.py has a recipe for a small data set.
"""

from dataclasses import replace

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 1_281_167
PLAIN = GnpConfig(alpha=0.0)
CROPPED = DataConfig(name="imagenet", batch_size=512, eval_batch_size=1024, flip=True, prefetch_steps=2)
# timm's rand-m9-mstd0.5-inc1, without the noise of the magnitude.
HEAVY = replace(CROPPED, policy="randaugment", randaugment_magnitude=27, mixup=0.8, cutmix=1.0)
FROZEN = ("embed/*", "position", "token", "blocks/*/mlp/*")


def vit_b16_384() -> Config:
    """ViT-B/16 from weights for 224 pixels to 384, 20,000 steps of SGD.

    Paper: arXiv 2010.11929, appendix B.1.1; big_vision/configs/transfer.py.
    Command: gnp-scale train configs/finetune.py:vit_b16_384 --model.init-from FILE --data.root gs://BUCKET/data
    Hardware: unknown.
    Batch: 512.
    Result: none in that file for B/16; 83.27 % top-1 for B/32 from ImageNet-21k.
    Hours: unknown.
    Run: not run here.
    """
    data = replace(CROPPED, image_size=384, holdout=0.01, eval_crop=384 / 448)
    optim = OptimConfig(name="sgd", learning_rate=0.03, momentum=0.9, nesterov=False, warmup_steps=500, clip_norm=1.0)
    return Config(data=data, model=_vit_b16(), gnp=PLAIN, optim=optim, train=_train(20_000))


def vit_b16_attention() -> Config:
    """ViT-B/16 from weights for 224 pixels to 384; only attention, norm layers and the classifier are trained.

    Paper: arXiv 2203.09795, section 4 (attention alone); the settings are those of vit_b16_384.
    Command: gnp-scale train configs/finetune.py:vit_b16_attention --model.init-from FILE --data.root gs://BUCKET/data
    Hardware: unknown.
    Batch: 512.
    Result: none published for these settings.
    Hours: unknown.
    Run: not run here.
    """
    config = vit_b16_384()
    return replace(config, optim=replace(config.optim, frozen=FROZEN))


def vit_b16_layer_decay() -> Config:
    """ViT-B/16 from the masked autoencoder's weights, 100 epochs, with a layer decay of 0.65.

    Paper: arXiv 2111.06377; FINETUNE.md of its repository (weights of its encoder, converted to safetensors).
    Command: gnp-scale train configs/finetune.py:vit_b16_layer_decay --model.init-from FILE --model.init-allow "head.*"
        --data.root gs://BUCKET/data
    Hardware: 32 V100 GPUs.
    Batch: 1024.
    Result: 83.6 % top-1 reported.
    Hours: 7.2 on 32 V100 GPUs (FINETUNE.md).
    Run: not run here.
    """
    data = replace(HEAVY, batch_size=1024, random_erasing=0.25, random_erasing_mode="pixel")
    optim = OptimConfig(
        name="adamw",
        learning_rate=2e-3,
        end_learning_rate=1e-6,
        warmup_steps=_steps(5, 1024),
        weight_decay=0.05,
        layer_decay=0.65,
    )
    return Config(
        data=data,
        model=replace(_vit_b16(), pool="average", drop_path=0.1),
        gnp=PLAIN,
        optim=optim,
        train=_train(_steps(100, 1024), label_smoothing=0.1),
    )


def deit3_b16() -> Config:
    """DeiT-III B/16 from the weights of imagenet.py:deit3_b16 for 192 pixels to 224, 20 epochs.

    Paper: arXiv 2204.07118; README_revenge.md of its repository.
    Command: gnp-scale train configs/finetune.py:deit3_b16 --model.init-from FILE --data.root gs://BUCKET/data
    Hardware: 8 GPUs.
    Batch: 512.
    Result: 83.8 % top-1 reported.
    Hours: unknown.
    Run: not run here.
    """
    optim = OptimConfig(name="adamw", learning_rate=1e-5, warmup_steps=_steps(5, 512), weight_decay=0.1)
    return Config(
        data=replace(HEAVY, eval_crop=1.0),
        model=ModelConfig(name="deit3_b", pool="token", dtype="bfloat16", drop_path=0.2),
        gnp=PLAIN,
        optim=optim,
        train=_train(_steps(20, 512), label_smoothing=0.1),
    )


def convnext_b_384() -> Config:
    """ConvNeXt-B from its weights for 224 pixels to 384, 30 epochs, with a layer decay of 0.7 for three blocks.

    Paper: arXiv 2201.03545; TRAINING.md of its repository, whose decay has a step for each three of the 36 blocks.
    Command: gnp-scale train configs/finetune.py:convnext_b_384 --model.init-from FILE --data.root gs://BUCKET/data
    Hardware: 16 GPUs.
    Batch: 512.
    Result: 85.1 % top-1 reported.
    Hours: unknown.
    Run: not run here.
    """
    data = replace(HEAVY, mixup=0.0, cutmix=0.0, image_size=384, random_erasing=0.25, random_erasing_mode="pixel")
    optim = OptimConfig(
        name="adamw", learning_rate=5e-5, end_learning_rate=1e-6, weight_decay=1e-8, layer_decay=0.7 ** (1 / 3)
    )
    return Config(
        data=replace(data, eval_crop=1.0),
        model=ModelConfig(name="convnext_b", dtype="bfloat16", drop_path=0.8),
        gnp=PLAIN,
        optim=optim,
        train=_train(_steps(30, 512), label_smoothing=0.1),
    )


def _vit_b16() -> ModelConfig:
    return ModelConfig(name="vit_b", pool="token", dtype="bfloat16")


def _steps(epochs: int, batch_size: int) -> int:
    return epochs * NUM_EXAMPLES // batch_size


def _train(num_steps: int, label_smoothing: float = 0.0) -> TrainConfig:
    return TrainConfig(num_steps=num_steps, label_smoothing=label_smoothing, log_every_steps=50, eval_every_steps=2500)
