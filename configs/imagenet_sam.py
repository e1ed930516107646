"""Recipes for ImageNet with SAM (arXiv 2010.01412): ResNet-50, 101 and 152, for 100, 200 and 400 epochs.

Batch 4096, SGD with momentum 0.9, learning rate 1.0 with a cosine, L2 1e-4, label smoothing 0.1, random crops and
flips, r 0.05. `--gnp.alpha 0` is the SGD of the same table. Five epochs of warm-up, Nesterov's momentum and L2 inside
the loss are those of the authors' code, from memory. Perturbations and batch statistics are those of one TPU core: 32
groups of 128 examples.
"""

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

NUM_EXAMPLES = 1_281_167
BATCH_SIZE = 4096
NUM_CORES = 32


def resnet50_100() -> Config:
    """ResNet-50 with SAM, 100 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet50_100 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 22.5 % top-1 and 6.28 % top-5 error reported; 22.9 % and 6.62 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet50", epochs=100)


def resnet50_200() -> Config:
    """ResNet-50 with SAM, 200 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet50_200 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 21.4 % top-1 and 5.82 % top-5 error reported; 22.3 % and 6.37 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet50", epochs=200)


def resnet50_400() -> Config:
    """ResNet-50 with SAM, 400 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet50_400 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 20.9 % top-1 and 5.51 % top-5 error reported; 22.3 % and 6.40 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet50", epochs=400)


def resnet101_100() -> Config:
    """ResNet-101 with SAM, 100 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet101_100 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 20.2 % top-1 and 5.12 % top-5 error reported; 21.2 % and 5.66 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet101", epochs=100)


def resnet101_200() -> Config:
    """ResNet-101 with SAM, 200 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet101_200 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 19.4 % top-1 and 4.76 % top-5 error reported; 20.9 % and 5.66 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet101", epochs=200)


def resnet101_400() -> Config:
    """ResNet-101 with SAM, 400 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet101_400 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 19.0 % top-1 and 4.65 % top-5 error reported; 22.3 % and 6.41 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet101", epochs=400)


def resnet152_100() -> Config:
    """ResNet-152 with SAM, 100 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet152_100 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 19.2 % top-1 and 4.69 % top-5 error reported; 20.4 % and 5.39 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet152", epochs=100)


def resnet152_200() -> Config:
    """ResNet-152 with SAM, 200 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet152_200 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 18.5 % top-1 and 4.37 % top-5 error reported; 20.3 % and 5.39 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet152", epochs=200)


def resnet152_400() -> Config:
    """ResNet-152 with SAM, 400 epochs.

    Paper: arXiv 2010.01412, table 2 and appendix.
    Command: gnp-scale train configs/imagenet_sam.py:resnet152_400 --data.root gs://BUCKET/data
    Hardware: 32 TPUv3 cores in the paper; with as many devices add --mesh.replica 32 --mesh.fsdp 1.
    Batch: 4096 in 32 groups.
    Result: 18.4 % top-1 and 4.35 % top-5 error reported; 20.9 % and 5.84 % with SGD (--gnp.alpha 0).
    Hours: unknown.
    Run: not run here.
    """
    return _sam("resnet152", epochs=400)


def _sam(network: str, epochs: int) -> Config:
    return Config(
        data=DataConfig(name="imagenet", batch_size=BATCH_SIZE, eval_batch_size=2048, flip=True, prefetch_steps=2),
        model=ModelConfig(name=network, dtype="bfloat16", num_bn_groups=NUM_CORES),
        gnp=GnpConfig(r=0.05, alpha=1.0, perturb_groups=NUM_CORES),
        optim=OptimConfig(
            name="sgd", learning_rate=1.0, momentum=0.9, nesterov=True, warmup_steps=_steps(5), l2_in_loss=1e-4
        ),
        train=TrainConfig(
            num_steps=_steps(epochs), label_smoothing=0.1, log_every_steps=50, eval_every_steps=5 * _steps(1)
        ),
    )


def _steps(epochs: int) -> int:
    return epochs * NUM_EXAMPLES // BATCH_SIZE
