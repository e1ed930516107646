"""The registered networks at their published sizes: parameters, and multiply-adds for one image."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gnp_scale.config import ConfigError, ModelConfig
from gnp_scale.models import cifar_resnet, cnn, pyramidnet, registry, shake_shake, wide_resnet
from gnp_scale.monitoring.flops import flops

_CIFAR_FAMILIES = (wide_resnet.FAMILY, cifar_resnet.FAMILY, shake_shake.FAMILY, pyramidnet.FAMILY, cnn.FAMILY)
_PATCH_SIZES = dict.fromkeys(("vit_so400m", "vit_h", "vit_g", "vit_gg", "vit_22b", "deit3_h"), 14)
_IMAGE_SIZES = {"cait_xs24": 384, "cait_s36": 384, "cait_m36": 384, "cait_m48": 448}


@dataclass(frozen=True)
class Network:
    """A network at its published size."""

    config: ModelConfig
    image_size: int
    """Height and width in pixels of the images for which it was published."""
    num_classes: int

    def num_params_and_products(self) -> tuple[int, int]:
        """Numbers of parameters, and of multiply-adds of a forward pass for one image; nothing is run.

        Convolutions and matrix products count, without products with the zeros around an image.
        """
        shape = (self.image_size, self.image_size, 3)
        model = registry.create(self.config, shape, self.num_classes, batch_size=1)
        network = jax.eval_shape(model.build, jax.random.key(0))
        num_params = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(network, nnx.Param)))

        def forward(network: Any, image_BxHxWxC: jax.Array) -> jax.Array:
            return network(image_BxHxWxC, train=False)

        # Products of parameters alone are the same for any number of images.
        images = (jax.ShapeDtypeStruct((number, *shape), jnp.float32) for number in (1, 2))
        one, two = (flops(forward, network, image) for image in images)
        return num_params, (two - one) // 2


def published(name: str) -> Network:
    """The network `name` at the size and for the images of its paper: ImageNet's, or CIFAR-10's."""
    family = registry.family_of(name)
    is_small = family in _CIFAR_FAMILIES
    config = ModelConfig(name)
    if "patch_size" in family.options:
        config = replace(config, patch_size=_PATCH_SIZES.get(name, config.patch_size))
    # One block is traced instead of all of them.
    config = replace(config, scan_layers="scan_layers" in family.options)
    return Network(config, 32 if is_small else _IMAGE_SIZES.get(name, 224), 10 if is_small else 1000)


def matching(parts: Sequence[str]) -> list[str]:
    """The names that contain one of `parts`, in the order of the registry; all names if there are no parts.

    Raises:
        ConfigError: a part is in no name.
    """
    for part in parts:
        if not any(part in name for name in registry.NAMES):
            raise ConfigError(f"no network has {part!r} in its name: gnp-scale models lists them all")
    return [name for name in registry.NAMES if not parts or any(part in name for part in parts)]
