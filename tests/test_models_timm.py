"""The same weights give the same logits and features as in PyTorch: as in timm (tests/fixtures/networks/make.py), or,
for networks that timm does not have, as in a plain implementation (reference.py, make_shake.py)."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from network_weights import directions as drawn_directions
from network_weights import drawn, images

from gnp_scale.config import ModelConfig
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
)
from gnp_scale.models.torch_weights import TorchName, from_torch, own_name

pytestmark = pytest.mark.usefixtures("unoptimized")

FOLDER = Path(__file__).parent / "fixtures" / "networks"


@dataclass(frozen=True)
class Case:
    """The small version of a network in `FOLDER`."""

    config: ModelConfig
    torch_name: TorchName
    sizes: tuple[dict[str, Any], str, Any] | None = None
    """A table of sizes, a name in it, and the small size that stands there during the test."""
    tolerance: float = 1e-5
    """Of the logits, relative to the largest."""


SMALL_VGG = (vgg.LAYOUTS, "vgg16", ((1, 8), (2, 16), (1, 8)))


def dinov3_name(path: str) -> str:
    """The name of a parameter in timm's DINOv3."""
    return vit.torch_name(path).replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2")


SMALL_VIT = {"patch_size": 8, "width": 24, "depth": 2, "num_heads": 3}
CASES = {
    "cait": Case(ModelConfig("cait_xxs24", **SMALL_VIT), cait.torch_name),
    "deit3": Case(ModelConfig("deit3_s", pool="token", **SMALL_VIT), vit.torch_name),
    "deit3_registers": Case(ModelConfig("deit3_s", pool="token", num_registers=3, **SMALL_VIT), vit.torch_name),
    "vit_registers": Case(ModelConfig("vit_ti", num_registers=4, **SMALL_VIT), vit.torch_name),
    "vit_attention": Case(ModelConfig("vit_ti", pool="attention", num_registers=4, **SMALL_VIT), vit.torch_name),
    "vit_rope_swiglu": Case(
        ModelConfig("deit3_s", pool="token", num_registers=4, position="rope", mlp="swiglu", **SMALL_VIT), dinov3_name
    ),
    "resnet": Case(
        ModelConfig("resnet50"),
        resnet.torch_name,
        (resnet.LAYOUTS, "resnet50", (resnet.Bottleneck, (1, 2, 1, 1))),
    ),
    "shake_shake": Case(
        ModelConfig("shake_shake_26_2x32d"),
        own_name,
        (shake_shake.LAYOUTS, "shake_shake_26_2x32d", (14, 8)),
    ),
    "pyramidnet_bottleneck": Case(
        ModelConfig("pyramidnet_272_200", shake_drop=0.5),
        own_name,
        (pyramidnet.LAYOUTS, "pyramidnet_272_200", (pyramidnet.Bottleneck, 20, 10)),
    ),
    "pyramidnet_basic": Case(
        ModelConfig("pyramidnet_110_270", shake_drop=0.5),
        own_name,
        (pyramidnet.LAYOUTS, "pyramidnet_110_270", (pyramidnet.BasicBlock, 14, 18)),
    ),
    "cifar_resnet": Case(ModelConfig("resnet20"), cifar_resnet.torch_name, (cifar_resnet.LAYOUTS, "resnet20", 2)),
    "cnn": Case(ModelConfig("cnn_s"), own_name, (cnn.LAYOUTS, "cnn_s", (8, 12))),
    "vgg": Case(ModelConfig("vgg16"), partial(vgg.torch_name, "vgg16"), SMALL_VGG),
    "vgg_bn": Case(ModelConfig("vgg16_bn"), partial(vgg.torch_name, "vgg16_bn"), SMALL_VGG),
    "mixer": Case(
        ModelConfig("mixer_s", patch_size=8),
        mixer.torch_name,
        (mixer.SIZES, "mixer_s", mixer.MixerConfig(16, 2, 8, 64)),
    ),
    "convnext": Case(
        ModelConfig("convnext_t"),
        convnext.torch_name,
        (convnext.SIZES, "convnext_t", convnext.ConvNeXtConfig((1, 2, 1, 1), (8, 16, 24, 32))),
    ),
    "vgg_large": Case(ModelConfig("vgg16"), partial(vgg.torch_name, "vgg16"), SMALL_VGG),
    "swin": Case(ModelConfig("swin_t"), swin.torch_name, (swin.LAYOUTS, "swin_t", (32, (2, 1, 2, 1)))),
    "vit": Case(ModelConfig("vit_ti", pool="token", **SMALL_VIT), vit.torch_name),
}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_features_are_those_of_timm(name: str, monkeypatch):
    case = CASES[name]
    if case.sizes is not None:
        monkeypatch.setitem(*case.sizes)
    stored = json.loads((FOLDER / f"{name}.json").read_text())
    image, weights, expected = images(stored["size"]), drawn(stored["shapes"]), np.array(stored["logits"])
    model = registry.create(case.config, image.shape[1:], expected.shape[1], len(image))
    state = [from_torch(weights, tree, case.torch_name) for tree in jax.eval_shape(model.init, jax.random.key(0))]
    networks = jax.jit(lambda *state: (model.network(*state)(image, train=False), model.features(*state)(image)))
    logits, feature = networks(*state)
    np.testing.assert_allclose(logits, expected, atol=case.tolerance * np.abs(expected).max(), rtol=0)
    # Those of networks that timm does not have are not stored.
    feature_BxF = np.array(stored.get("features", feature))
    atol = case.tolerance * np.abs(feature_BxF).max()
    np.testing.assert_allclose(feature[:, : feature_BxF.shape[1]], feature_BxF, atol=atol, rtol=0)


@pytest.mark.slow
# One ReLU of a ResNet, whose input rounds to the other sign, changes the gradients of all earlier layers.
@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("deit3_registers", 1e-4), ("resnet", 1e-3), ("vit_attention", 1e-4), ("vit_rope_swiglu", 1e-4)],
)
def test_gradients_are_those_of_timm(name: str, tolerance: float, monkeypatch):
    """Of half the squares of the logits, in training: a ResNet normalises with the statistics of the batch.

    For each tensor the norm, and the product with a drawn tensor, which no permutation keeps. Float32 against float64.
    """
    case = CASES[name]
    if case.sizes is not None:
        monkeypatch.setitem(*case.sizes)
    stored = json.loads((FOLDER / f"{name}.json").read_text())
    image, weights, directions = images(stored["size"]), drawn(stored["shapes"]), drawn_directions(stored["shapes"])
    model = registry.create(case.config, image.shape[1:], 10, len(image))
    trees = jax.eval_shape(model.init, jax.random.key(0))
    params, stats = (from_torch(weights, tree, case.torch_name) for tree in trees)

    def loss(params, stats):
        return 0.5 * jnp.sum(jnp.square(model.network(params, stats)(image, train=True)))

    pairs = zip(
        jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params, stats)),
        jax.tree.leaves(from_torch(directions, trees[0], case.torch_name)),
        strict=True,
    )
    total = np.linalg.norm([norm for norm, _ in stored["gradients"].values()])
    for (path, leaf), direction in pairs:
        tensor = case.torch_name(jax.tree_util.keystr(path, simple=True, separator="/"))
        norm, product = stored["gradients"][tensor]
        # An error of a gradient changes its norm by at most its own norm, and the product by that of both factors.
        # Some gradients, such as those of the biases of keys, are only rounding errors.
        error = tolerance * norm + 1e-6 * total
        assert np.linalg.norm(leaf) == pytest.approx(norm, rel=0, abs=error), tensor
        assert np.sum(leaf * direction) == pytest.approx(product, rel=0, abs=error * np.linalg.norm(direction)), tensor
    assert len(jax.tree.leaves(trees[0])) == len(stored["gradients"])
