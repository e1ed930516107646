"""Networks with the names and kinds of layers of the real ones, but few and narrow layers; recipes of such networks."""

import functools
import re
from dataclasses import replace
from pathlib import Path

import pytest

from gnp_scale import recipe
from gnp_scale.config import Config, DataConfig
from gnp_scale.models import (
    cait,
    cifar_resnet,
    cnn,
    convnext,
    mixer,
    pyramidnet,
    registry,
    resnet,
    shake_shake,
    swin,
    vgg,
    vit,
    wide_resnet,
)

_DEEPEST = [name for name in registry.NAMES if name.startswith("pyramidnet") and name != "pyramidnet_110_48"]
ALL_NETWORKS = [pytest.param(name, marks=pytest.mark.long if name in _DEEPEST else ()) for name in registry.NAMES]
"""The names of all real networks, for a test with a row for each."""

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = [path for path in sorted(CONFIGS.glob("*.py")) if not path.name.startswith("_")]
NAMES = [f"{path}:{name}" for path in FILES for name in recipe.functions(path)]
IMAGE_SIZES = {"cifar10": 32, "cifar100": 32, "fashion_mnist": 28, "digits": 8}
SMALLEST = {"vgg16": 32, "convnext": 32, "swin": 32}
"""Sides of the smallest images, in pixels, where they are more than 16."""
_WITHOUT_EFFECT = re.compile(
    r"data\.(name|root|train_split|holdout|crop_area|max_damaged|num_threads|prefetch|image_size|eval_|synthetic_num_)|"
    r"train\.(seed|log_)|checkpoint\.|divergence\."
)
"""Names of options on which the program of a step does not depend."""


def _short_layouts():
    """(table of a file in models/, name of a network, short layout with the same kinds of layers)."""
    for name, (block, _) in resnet.LAYOUTS.items():
        yield resnet.LAYOUTS, name, (block, (1, 1))
    for name, (block, _, _) in pyramidnet.LAYOUTS.items():
        yield pyramidnet.LAYOUTS, name, (block, 2 + pyramidnet.NUM_GROUPS * block.num_convs, 6)
    for sizes in (vit.SIZES, cait.SIZES):
        for name, size in sizes.items():
            yield sizes, name, replace(size, width=32, depth=1, mlp=64, num_heads=2)
    others = (
        (wide_resnet.LAYOUTS, (10, 1)),
        (cifar_resnet.LAYOUTS, 1),
        (cnn.LAYOUTS, (8, 16)),
        (shake_shake.LAYOUTS, (8, 8)),
        (vgg.LAYOUTS, ((1, 8), (1, 8))),
        (mixer.SIZES, mixer.MixerConfig(16, 1, 8, 32)),
        (convnext.SIZES, convnext.ConvNeXtConfig((1, 1), (8, 16))),
        (swin.LAYOUTS, (32, (2, 1))),
    )
    for layouts, layout in others:
        yield from ((layouts, name, layout) for name in layouts)


SHORT = tuple(_short_layouts())


def shorten(patch):
    """Replaces the layouts of all networks by short ones, until `patch` is undone."""
    for layouts, name, layout in SHORT:
        patch.setitem(layouts, name, layout)
    patch.setattr(vgg, "HIDDEN", 32)
    patch.setattr(resnet, "WIDTH", 8)


def _first_alike(name):
    """The first network whose short layout is that of the network `name`."""
    layouts, layout = next(((layouts, layout) for layouts, other, layout in SHORT if other == name), (None, None))
    return next((other for table, other, same in SHORT if table is layouts and same == layout), name)


def synthetic(config: Config) -> Config:
    """`config` with synthetic images of the size of its own, and a network of the same kind."""
    size = IMAGE_SIZES.get(config.data.name, config.data.image_size)
    model = replace(config.model, name=_first_alike(config.model.name), depth=None, width=None, num_heads=None)
    data = replace(
        config.data,
        name="synthetic",
        synthetic_image_size=size,
        synthetic_num_examples=64,
        # A hundredth of so few images is none.
        holdout=DataConfig.holdout,
        eval_split=DataConfig.eval_split,
    )
    return replace(config, data=data, model=model)


def shrunken(config: Config) -> Config:
    """Three steps of 8 small synthetic images, in at most two groups; a warm-up, or a wait for the gate, is one step.

    A ViT gets 4 patches of 4 pixels.
    """
    uses_patches = "patch_size" in registry.family_of(config.model.name).options
    size = 8 if uses_patches else SMALLEST.get(config.model.name.partition("_")[0], 16)
    config = synthetic(config)
    data, model, gnp, optim, train = config.data, config.model, config.gnp, config.optim, config.train
    return replace(
        config,
        data=replace(
            data,
            synthetic_image_size=size,
            batch_size=8,
            eval_batch_size=8,
            synthetic_num_examples=16,
            num_repeats=min(data.num_repeats, 2),
            cutout=min(data.cutout, size // 2),
            prefetch_steps=1,
        ),
        model=replace(model, num_bn_groups=min(model.num_bn_groups, 2), patch_size=4 if uses_patches else 16),
        gnp=replace(
            gnp,
            perturb_groups=min(gnp.perturb_groups, 2),
            gate_start=min(gnp.gate_start, 1),
            gate_stop=gnp.gate_stop and 3,
            gate_every=min(gnp.gate_every, 2) if gnp.gate == "every" else gnp.gate_every,
            reuse_every=min(gnp.reuse_every, 2) if gnp.direction == "reused" else gnp.reuse_every,
            ascent_fraction=1.0 if gnp.ascent_fraction == 1 else 0.5,
            warmup_steps=min(gnp.warmup_steps, 1),
        ),
        optim=replace(optim, warmup_steps=min(optim.warmup_steps, 1)),
        train=replace(train, num_steps=3, accumulate_steps=min(train.accumulate_steps, 2), eval_every_steps=3),
    )


def program(config: Config) -> tuple[tuple[str, str], ...]:
    """What the program of a step depends on: all values, but of a number only its class (`_class_of`).

    So recipes that differ in r, a rate or a number of epochs share a program.
    """
    values = {name: value for name, value in recipe.flatten(config).items() if not _WITHOUT_EFFECT.match(name)}
    return tuple((name, _class_of(name, value)) for name, value in values.items())


def _class_of(name, value):
    """None, 0, between 0 and 1, 1, or more: code asks no more of a float, nor of a number of steps."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return repr(value)
    if isinstance(value, float) or name.endswith(
        ("num_steps", "_every_steps", "warmup_steps", "gate_start", "randaugment_magnitude")
    ):
        return "0" if value == 0 else "below 1" if value < 1 else "1" if value == 1 else "above 1"
    return repr(value)


@functools.cache
def load(name: str) -> Config:
    return recipe.load(name)


def by_program(shape):
    """{program: the recipes whose configuration, changed by `shape`, has it}."""
    found: dict[tuple, list[str]] = {}
    for name in NAMES:
        found.setdefault(program(shape(load(name))), []).append(name)
    return found


def parts(config: Config) -> frozenset[tuple[str, str]]:
    """What one run of `config` shows: that each value of an option works, and the options `gnp` together."""
    values = program(config)
    together = repr([value for name, value in values if name.startswith("gnp.")])
    chosen = {(name, value) for name, value in values if name != "data.synthetic_image_size"}
    return frozenset({*chosen, ("gnp", together)})


def covering(programs) -> list[str]:
    """A few recipes that have all `parts` of all recipes; each one has a part that those before it lack."""
    have = {names[0]: parts(shrunken(load(names[0]))) for names in programs.values()}
    missing, chosen = frozenset().union(*have.values()), []
    while missing:
        chosen.append(max(have, key=lambda name: len(have[name] & missing)))
        missing -= have[chosen[-1]]
    return chosen


def short(name: str) -> str:
    """file.py:function."""
    return name.rpartition("/")[2]
