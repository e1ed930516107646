"""The authors' recipes for ImageNet (ILSVRC 2012): a folder `imagenet` in data.root, in any form of docs/data.md.

Values are those of the scripts in github.com/zhaoyang-0204/gnp: clip 5.0, cosine to 0, random resized crops and flips,
no warm-up, no label smoothing. A function named `..._as_released` also has the code's blend, its groups and its decay
of all parameters (`_released.py`).
"""

from dataclasses import replace

from _released import as_released

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 1_281_167
NUM_EPOCHS = 100
CROPPED = DataConfig(name="imagenet", eval_batch_size=1024, flip=True)
# L2 is part of the loss, so that it enters both gradients.
SGD = OptimConfig(name="sgd", momentum=0.9, nesterov=True, l2_in_loss=1e-4, clip_norm=5.0)


def resnet50() -> Config:
    """ResNet-50, 100 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/resnet-imagenet.sh.
    Command: gnp-scale train configs/imagenet_gnp.py:resnet50 --data.root gs://BUCKET/data
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 512 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _recipe(ModelConfig("resnet50"), batch_size=512, learning_rate=0.2)


def resnet50_as_released() -> Config:
    """ResNet-50, 100 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/resnet-imagenet.sh.
    Command: gnp-scale train configs/imagenet_gnp.py:resnet50_as_released --data.root gs://BUCKET/data
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 512 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(resnet50())


def vgg16_bn() -> Config:
    """VGG16 with batch normalisation, 100 epochs.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vggbn-imagenet.sh.
    Command: gnp-scale train configs/imagenet_gnp.py:vgg16_bn --data.root gs://BUCKET/data
    Hardware: not stated by the authors; this recipe takes one accelerator.
    Batch: 256 in one group.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return _recipe(ModelConfig("vgg16_bn", dropout=0.5), batch_size=256, learning_rate=0.1)


def vgg16_bn_as_released() -> Config:
    """VGG16 with batch normalisation, 100 epochs, as released.

    Paper: arXiv 2202.03599; github.com/zhaoyang-0204/gnp, recipes/vggbn-imagenet.sh.
    Command: gnp-scale train configs/imagenet_gnp.py:vgg16_bn_as_released --data.root gs://BUCKET/data
    Hardware: not stated by the authors; groups for 4 devices, this project's choice.
    Batch: 256 in 4 groups.
    Result: unknown; the paper's cell could not be read.
    Hours: unknown.
    Run: not run here.
    """
    return as_released(vgg16_bn())


def _recipe(model: ModelConfig, batch_size: int, learning_rate: float) -> Config:
    num_steps = NUM_EXAMPLES // batch_size  # Of an epoch. The code drops the rest.
    return Config(
        data=replace(CROPPED, batch_size=batch_size),
        model=model,
        gnp=GnpConfig(r=0.05, alpha=0.8),
        optim=replace(SGD, learning_rate=learning_rate),
        train=TrainConfig(num_steps=NUM_EPOCHS * num_steps, log_every_steps=50, eval_every_steps=num_steps),
    )
