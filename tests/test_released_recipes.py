"""The authors' nine recipes have the values of their scripts (github.com/zhaoyang-0204/gnp, commit e803362)."""

from dataclasses import replace

import pytest
from small_networks import CONFIGS

from gnp_scale import recipe
from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig

CIFAR, IMAGENET = 50_000, 1_281_167
BASIC = {"crop_padding": 4, "flip": True}
HEAVY = BASIC | {"mixup": 1.0}
MOST = HEAVY | {"policy": "autoaugment_cifar10", "cutout": 16}
CROPS = {"flip": True, "image_size": 224, "crop_area": 0.08}
RESNET50 = ModelConfig("resnet50", stem="cifar")
SHAKE_SHAKE = ModelConfig("shake_shake_26_2x96d", shake_gradient="consistent")
PYRAMIDNET = ModelConfig("pyramidnet_272_200", shake_drop=0.5, shake_gradient="consistent")
VIT_S = ModelConfig("vit_s", patch_size=4, pool="token", dropout=0.1)
ROWS = (
    # file and function, network, batch, lr, epochs, L2, AdamW's decay, warm-up epochs, augmentation, r, alpha
    ("cifar.py:resnet50", RESNET50, 256, 0.1, 200, 1e-3, 0, 0, BASIC, 0.1, 0.8),
    ("cifar.py:wrn_28_10", ModelConfig("wrn_28_10"), 256, 0.1, 200, 1e-3, 0, 0, BASIC, 0.1, 0.8),
    ("cifar.py:shake_shake", SHAKE_SHAKE, 256, 0.1, 1800, 1e-3, 0, 0, BASIC, 0.1, 0.8),
    ("cifar.py:pyramidnet", PYRAMIDNET, 128, 0.05, 1800, 5e-4, 0, 0, MOST, 0.1, 0.8),
    ("cifar.py:vit_s", VIT_S, 256, 1e-3, 300, 0, 0.3, 0, BASIC, 0.1, 0.8),
    ("cifar.py:vit_s_heavy", VIT_S, 256, 5e-4, 1200, 0, 0.03, 0, HEAVY, 0.1, 0.8),
    ("cifar.py:vit_s_zero_warmup", VIT_S, 256, 1e-3, 300, 0, 0.3, 40, BASIC, 0.1, 1.0),
    ("imagenet_gnp.py:resnet50", ModelConfig("resnet50"), 512, 0.2, 100, 1e-4, 0, 0, CROPS, 0.05, 0.8),
    ("imagenet_gnp.py:vgg16_bn", ModelConfig("vgg16_bn", dropout=0.5), 256, 0.1, 100, 1e-4, 0, 0, CROPS, 0.05, 0.8),
)
each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])


def expected(row):
    """Clip 5.0, cosine to 0, no label smoothing, Nesterov momentum 0.9 or AdamW, whole batches of each epoch."""
    name, model, batch, rate, epochs, l2, decay, warmup_epochs, augmentation, r, alpha = row
    is_cifar = name.startswith("cifar")
    steps = (CIFAR if is_cifar else IMAGENET) // batch
    data = DataConfig("cifar10" if is_cifar else "imagenet", batch_size=batch, eval_batch_size=1024, **augmentation)
    common = {"learning_rate": rate, "schedule": "cosine", "end_learning_rate": 0.0, "clip_norm": 5.0}
    optim = OptimConfig("adamw" if decay else "sgd", **common, weight_decay=decay, l2_in_loss=l2, b1=0.9, b2=0.999)
    optim = replace(optim, momentum=0.9, nesterov=True, eps=1e-8, warmup_steps=warmup_epochs * steps)
    window = {"gate": "window", "gate_start": warmup_epochs * steps} if warmup_epochs else {}
    train = TrainConfig(epochs * steps, label_smoothing=0.0, log_every_steps=50, eval_every_steps=steps)
    return Config(data, model, GnpConfig(r=r, alpha=alpha, blend="paper", **window), optim, train=train)


def load(name):
    return recipe.load(f"{CONFIGS}/{name}")


@each_row
def test_a_recipe_has_the_values_of_its_script(row):
    assert load(row[0]) == expected(row)


@each_row
def test_its_twin_differs_by_what_only_the_code_does(row):
    """The blend, four devices that perturb and normalise for themselves, and the decay of all parameters."""
    config, num_bn_groups = expected(row), 1 if row[1].name == "vit_s" else 4
    assert load(f"{row[0]}_as_released") == replace(
        config,
        model=replace(config.model, num_bn_groups=num_bn_groups),
        gnp=replace(config.gnp, blend="unit_norm", perturb_groups=4),
        optim=replace(config.optim, decay_norm_and_bias=True),
    )


@pytest.mark.parametrize("row", ROWS[:7], ids=lambda row: row[0])
def test_cifar100_has_the_values_of_cifar10(row):
    for suffix in ("", "_as_released"):
        config, name = load(row[0] + suffix), row[0].replace("cifar", "cifar100") + suffix
        assert load(name) == replace(config, data=replace(config.data, name="cifar100"))


def test_every_recipe_of_the_files_is_in_the_table():
    twice = {name + suffix for name, *_ in ROWS for suffix in ("", "_as_released")}
    files = ("cifar", "cifar100", "imagenet_gnp")
    found = {f"{file}.py:{name}" for file in files for name in recipe.functions(CONFIGS / f"{file}.py")}
    assert found == twice | {name.replace("cifar", "cifar100") for name in twice}
