"""Recipes for the Grocery Store photographs (arXiv 1901.00711): 5,421 images of 81 fine classes, MIT licence.

Put github.com/marcusklasson/GroceryStoreDataset's folder `dataset` at data/grocery_store, or give another --data.root.
`gnp-scale data prepare data/grocery_store data/grocery` writes it as shards, for `--data.name grocery`. The test
images are for the end: gnp-scale eval runs/grocery-resnet18 --data.eval_split test.
"""

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 2640
BATCH_SIZE = 64


def resnet18() -> Config:
    """ResNet-18 at 64 x 64 pixels, with the stem of ImageNet's networks, 60 epochs, evaluated on the validation split.

    Paper: the data are those of arXiv 1901.00711; the recipe is this project's own.
    Command: gnp-scale train configs/grocery.py:resnet18
    Hardware: a CPU.
    Batch: 64 in one group.
    Result: none; the recipe is this project's own.
    Hours: unknown.
    Run: not run here.
    """
    num_steps = 60 * NUM_EXAMPLES // BATCH_SIZE
    return Config(
        data=DataConfig(name="grocery_store", batch_size=BATCH_SIZE, eval_batch_size=64, image_size=64, flip=True),
        model=ModelConfig(name="resnet18", stem="imagenet"),
        gnp=GnpConfig(r=0.05, alpha=0.8),
        optim=OptimConfig(name="sgd", learning_rate=0.05, momentum=0.9, nesterov=True, l2_in_loss=5e-4, clip_norm=5.0),
        train=TrainConfig(num_steps=num_steps, log_every_steps=10, eval_every_steps=NUM_EXAMPLES // BATCH_SIZE * 5),
    )


def vit_s16() -> Config:
    """ViT-S/16 fine-tuned from ImageNet weights at 224 x 224 pixels, 20 epochs, evaluated on the validation split.

    Paper: arXiv 1901.00711 (the data), arXiv 2206.06232 (fine-tuning with SAM); the settings are this project's own.
    Command: gnp-scale train configs/grocery.py:vit_s16 --model.init-from FILE --model.init-allow "head.*"
    Hardware: one accelerator, or a CPU with patience.
    Batch: 64.
    Result: none published.
    Hours: unknown.
    Run: not run here.
    """
    num_steps = 20 * NUM_EXAMPLES // BATCH_SIZE
    return Config(
        data=DataConfig(name="grocery_store", batch_size=BATCH_SIZE, eval_batch_size=64, flip=True, crop_area=0.25),
        model=ModelConfig(name="vit_s", pool="token"),
        gnp=GnpConfig(r=0.05, alpha=0.8),
        optim=OptimConfig(
            name="adamw",
            learning_rate=5e-4,
            warmup_steps=num_steps // 10,
            weight_decay=0.05,
            clip_norm=1.0,
            layer_decay=0.75,
        ),
        train=TrainConfig(num_steps=num_steps, log_every_steps=10, eval_every_steps=NUM_EXAMPLES // BATCH_SIZE * 2),
    )
