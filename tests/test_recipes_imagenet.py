"""The recipes for ImageNet have the values of their papers.

The tables repeat the published numbers, independently of the recipes: all options that differ from their defaults. A
value that changes in a recipe must be changed here too.
"""

import re

import pytest
from recipe_values import (
    CONFIGS,
    CROPPED,
    ERASE,
    HOLDOUT,
    IMAGENET,
    MIX,
    PLAIN,
    RAND_M9,
    SMOOTH,
    TRAINED_99,
    recipes,
    steps,
)

from gnp_scale import recipe


def sam(depth: int, epochs: int, alpha: float = 1.0) -> dict[str, object]:
    """arXiv 2010.01412, section 3.2 and appendix."""
    return {
        **CROPPED,
        **SMOOTH,
        **steps(epochs, 4096),
        "model.name": f"resnet{depth}",
        "model.num_bn_groups": 32,
        "gnp.perturb_groups": 32,
        "optim.learning_rate": 1.0,
        "optim.warmup_steps": 5 * IMAGENET // 4096,
        "optim.l2_in_loss": 1e-4,
        **({} if alpha == 0.8 else {"gnp.alpha": alpha}),
    }


def no_aug(model: dict[str, object], gnp: dict[str, object]) -> dict[str, object]:
    """arXiv 2203.08065, table 4."""
    return {
        **CROPPED,
        **HOLDOUT,
        **steps(300, 4096, TRAINED_99),
        "model.head_bias": -10.0,
        "optim.name": "adamw",
        "optim.schedule": "linear",
        "optim.learning_rate": 3e-3,
        "optim.end_learning_rate": 3e-5,
        "optim.warmup_steps": 10_000,
        "optim.weight_decay": 0.3,
        "optim.clip_norm": 1.0,
        "train.loss": "sigmoid",
        **model,
        **gnp,
    }


def no_aug_family(name: str, model: dict[str, object], r: float, gsam: tuple[float, float, float]) -> dict[str, object]:
    """The four recipes of one network; `gsam` is rho_max, rho_min and alpha of arXiv 2203.08065, table 4."""
    groups = {"gnp.perturb_groups": 64}
    radii = {"gnp.r": gsam[0], "gnp.end_r": gsam[1], "gnp.r_schedule": "learning_rate"}
    return {
        f"{name}_vanilla": no_aug(model, PLAIN),
        f"{name}_sam": no_aug(model, {**groups, "gnp.r": r, "gnp.alpha": 1.0}),
        f"{name}_gsam": no_aug(model, {**groups, **radii, "gnp.alpha": gsam[2], "gnp.blend": "gsam"}),
        f"{name}_gnp": no_aug(model, {**groups, "gnp.r": r}),
    }


AUGREG = {
    **CROPPED,
    **PLAIN,
    **HOLDOUT,
    "data.policy": "randaugment",
    "data.randaugment_magnitude": 30,
    "optim.name": "adamw",
    "optim.learning_rate": 1e-3,
    "optim.warmup_steps": 10_000,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "optim.moment_dtype": "bfloat16",
    "model.rep_layer": True,
}
SIMPLE = {**AUGREG, "data.mixup": 0.2, "model.name": "vit_s", "model.position": "sincos2d"}


def bce(epochs: int, batch_size: int, rate: tuple[float, float, float], threshold: float) -> dict[str, object]:
    """LAMB with the highest and last learning rate and weight decay of `rate`, and binary cross-entropy."""
    return {
        **CROPPED,
        **PLAIN,
        **steps(epochs, batch_size),
        "data.cutmix": 1.0,
        "optim.name": "lamb",
        "optim.learning_rate": rate[0],
        "optim.end_learning_rate": rate[1],
        "optim.warmup_steps": 5 * IMAGENET // batch_size,
        "optim.weight_decay": rate[2],
        "optim.clip_norm": 1.0,
        "train.loss": "bce",
        "train.target_threshold": threshold,
    }


def deit(name: str, learning_rate: float, drop_path: float) -> dict[str, object]:
    """arXiv 2204.07118, README_revenge.md."""
    return {
        **bce(800, 2016, (learning_rate, 1e-5, 0.05), 0.0),
        **MIX,
        "data.num_repeats": 3,
        "data.policy": "three_augment",
        **{f"data.{name}": 0.3 for name in ("brightness", "contrast", "saturation")},
        "data.eval_crop": 1.0,
        "model.name": name,
        "model.pool": "token",
        "model.drop_path": drop_path,
    }


def a_class(epochs: int, batch_size: int, learning_rate: float, magnitude: int) -> dict[str, object]:
    """arXiv 2110.00476, table 2."""
    return {
        **bce(epochs, batch_size, (learning_rate, 1e-6, 0.02), 0.2),
        "data.policy": "randaugment",
        "data.randaugment_magnitude": magnitude,
        "data.mixup": 0.1,
        "data.eval_crop": 0.95,
        "model.name": "resnet50",
        "model.num_bn_groups": 32,
    }


def heavy(name: str, batch_size: int, rates: tuple[float, float], drop_path: float) -> dict[str, object]:
    """config.py of Swin and main.py of ConvNeXt."""
    return {
        **CROPPED,
        **PLAIN,
        **SMOOTH,
        **RAND_M9,
        **ERASE,
        **steps(300, batch_size),
        "optim.name": "adamw",
        "optim.learning_rate": rates[0],
        "optim.end_learning_rate": rates[1],
        "optim.warmup_steps": 20 * IMAGENET // batch_size,
        "optim.weight_decay": 0.05,
        "model.name": name,
        "model.drop_path": drop_path,
    }


SWIN = {"optim.clip_norm": 5.0}
CONVNEXT = {"train.ema_decay": 0.9999}


EXPECTED = {
    "imagenet": {
        "resnet50": sam(50, 100, alpha=0.8),
        "vit_s16_90": {**SIMPLE, **steps(90, 1024, TRAINED_99)},
        "vit_s16_300": {**SIMPLE, **steps(300, 1024, TRAINED_99)},
        "vit_l16": {
            **AUGREG,
            **steps(300, 4096, TRAINED_99),
            "data.mixup": 0.5,
            "model.name": "vit_l",
            "model.pool": "token",
        },
        "deit3_s16": deit("deit3_s", 4e-3, 0.05),
        "deit3_b16": {**deit("deit3_b", 3e-3, 0.2), "data.image_size": 192},
    },
    "imagenet_sam": {
        f"resnet{depth}_{epochs}": sam(depth, epochs) for depth in (50, 101, 152) for epochs in (100, 200, 400)
    },
    "imagenet_no_aug": {
        **no_aug_family("vit_s16", {"model.name": "vit_s"}, 0.1, (0.6, 0.0, 1.0)),
        **no_aug_family("vit_b16", {"model.name": "vit_b"}, 0.2, (0.6, 0.2, 0.4)),
        **no_aug_family("vit_b32", {"model.name": "vit_b", "model.patch_size": 32}, 0.15, (0.6, 0.1, 0.6)),
    },
    "imagenet_no_aug_mixer": no_aug_family("mixer_b16", {"model.name": "mixer_b"}, 0.6, (0.5, 0.2, 0.01)),
    "imagenet_modern": {
        "swin_t": {**heavy("swin_t", 1024, (1e-3, 1e-5), 0.2), **SWIN},
        "swin_b": {**heavy("swin_b", 1024, (1e-3, 1e-5), 0.5), **SWIN},
        "convnext_t": {**heavy("convnext_t", 4096, (4e-3, 1e-6), 0.1), **CONVNEXT},
        "convnext_b": {**heavy("convnext_b", 4096, (4e-3, 1e-6), 0.5), **CONVNEXT},
        "resnet50_a2": {**a_class(300, 2016, 5e-3, 21), "data.num_repeats": 3},
        "resnet50_a3": {**a_class(100, 2048, 8e-3, 18), "data.image_size": 160},
    },
}


@pytest.mark.parametrize("file", EXPECTED)
def test_recipes_have_the_published_values(file):
    """All recipes of a file, and no others, so that a new one comes with its row."""
    assert recipes(file) == EXPECTED[file]


@pytest.mark.parametrize("file", EXPECTED)
def test_docstrings_state_the_batch_and_the_groups_that_recipes_use(file):
    for name, make in recipe.functions(CONFIGS / f"{file}.py").items():
        batch, groups = re.search(r"Batch: (\d+)(?: in (\d+) groups)?[.,]", make.__doc__).groups()
        config = make()
        assert (config.data.batch_size, config.gnp.perturb_groups) == (int(batch), int(groups or 1)), name


def test_penalised_recipes_have_groups_as_small_as_in_the_papers():
    sizes = {
        name: values["data.batch_size"] // values.get("gnp.perturb_groups", 1)
        for expected in EXPECTED.values()
        for name, values in expected.items()
        if "gnp.alpha" not in values or values["gnp.alpha"] > 0
    }
    assert len(sizes) == 22
    assert set(sizes.values()) == {64, 128}
