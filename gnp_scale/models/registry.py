"""The networks by name. Each creates nested dicts of arrays, and converts them to a module inside a trace.

A further network is a file with a `FAMILY`, and its entry in `_FAMILIES`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gnp_scale import mesh
from gnp_scale.checks import closest
from gnp_scale.config import ConfigError, ModelConfig
from gnp_scale.models import (
    cait,
    cifar_resnet,
    cnn,
    convnext,
    mixer,
    pyramidnet,
    resnet,
    shake_shake,
    swin,
    vgg,
    vit,
    wide_resnet,
)
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import Head
from gnp_scale.models.family import Family

type Params = dict[str, Any]
"""Nested dicts of float32 arrays."""
type BatchStats = dict[str, Any]
"""Nested dicts of float32 arrays; empty for networks without batch normalisation."""

_FAMILIES = (
    vit.FAMILY,
    cait.FAMILY,
    swin.FAMILY,
    resnet.FAMILY,
    wide_resnet.FAMILY,
    cifar_resnet.FAMILY,
    vgg.FAMILY,
    vgg.BN_FAMILY,
    mixer.FAMILY,
    convnext.FAMILY,
    shake_shake.FAMILY,
    pyramidnet.FAMILY,
    cnn.FAMILY,
)
_FAMILY_OF = {name: family for family in _FAMILIES for name in family.names}

NAMES = tuple(_FAMILY_OF)


@dataclass(frozen=True)
class Model:
    """A network; call its functions under `jax.jit`, with the mesh set."""

    build: Callable[[jax.Array], Any]
    """The network with parameters drawn from a key."""
    bn_group_size: int = 1
    """Consecutive examples of the global batch that share batch statistics; 1 without batch statistics."""
    head_bias: float = 0.0
    """Initial bias of the classifier."""
    has_frozen_norm: Callable[[str], bool] = lambda _: False
    """Whether the batch normalisation at a path, such as "stem/norm", has frozen statistics."""

    def init(self, key: jax.Array) -> tuple[Params, BatchStats]:
        """Parameters and batch statistics before training; each leaf is created in shards on the current mesh."""
        network = self.build(key)
        params, batch_stats = map(nnx.to_pure_dict, nnx.state(network, nnx.Param, nnx.BatchStat))
        params["head"] = jax.tree.map_with_path(
            lambda path, w: jnp.full_like(w, self.head_bias) if path[-1].key == "bias" else w, params["head"]
        )
        return params, batch_stats

    def network(self, params: Params, batch_stats: BatchStats) -> Callable[..., jax.Array]:
        """`network(image_BxHxWxC, *, train, key_B=None)`: logits of normalised images, float32 of shape (B, classes).

        The images are floats. Images and logits are sharded over `mesh.BATCH`. With `train=True` the network normalises
        with the statistics of the batch and updates the running ones; read these afterwards with
        `batch_stats_of(network)`. Dropout, drop path, Shake-Shake and ShakeDrop draw from `key_B`, a key for each
        example; without keys they do not act.
        """
        return nnx.merge(self._graph, params, batch_stats)

    def features(self, params: Params, batch_stats: BatchStats) -> Callable[[jax.Array], jax.Array]:
        """`features(image_BxHxWxC)`: the input of the classifier in evaluation, float32 of shape (B, D).

        That is what the last dense layer gets: after the pooling, and after any norm or dense layer that precedes it.
        It is sharded over `mesh.BATCH`. timm calls it `forward_head(x, pre_logits=True)`.
        """
        network: Any = nnx.merge(self._graph, params, batch_stats)
        # The last dense layer becomes the identity.
        owner, name = (network.head, "dense") if isinstance(network.head, Head) else (network, "head")
        setattr(owner, name, _identity)

        def features(image_BxHxWxC: jax.Array) -> jax.Array:
            feature_BxD = network(image_BxHxWxC, train=False).astype(jnp.float32)
            return mesh.resharded(feature_BxD, mesh.batch_spec(2))

        return features

    def batch_norm_advice(self, batch_size: int, num_parts: int) -> str | None:
        """What batch statistics over the whole batch cost on the current mesh, and a cheaper choice; None without cost.

        It is only advice: `model.num_bn_groups` belongs to the experiment, and never depends on the machine.

        Args:
            batch_size: Examples of a training step.
            num_parts: Parts of the batch that are computed in sequence.
        """
        num_devices = mesh.current_axis_size(mesh.AXES)
        num_groups = num_devices * num_parts
        can_be_cut = batch_size % num_groups == 0 and batch_size > num_groups
        has_statistics = any(not norm.is_frozen for _, norm in _batch_norms(self._network))
        if not has_statistics or self.bn_group_size != batch_size or num_devices == 1 or not can_be_cut:
            return None
        return (
            f"model.num_bn_groups is 1: batch statistics over {num_devices} devices cost each normalisation layer one "
            f"all-reduce in each forward pass and one in each backward pass; --model.num-bn-groups {num_groups}, of "
            f"{batch_size // num_groups} examples each, would cost none, but is a different experiment"
        )

    @cached_property
    def _graph(self) -> Any:
        return nnx.graphdef(self._network)

    @cached_property
    def _network(self) -> Any:
        """The network without values."""
        network = jax.eval_shape(self.build, jax.random.key(0))
        for path, norm in _batch_norms(network):
            norm.is_frozen = self.has_frozen_norm("/".join(map(str, path)))
        return network


def _batch_norms(network: Any) -> list[tuple[tuple[Any, ...], BatchNorm]]:
    return [(path, module) for path, module in nnx.iter_modules(network) if isinstance(module, BatchNorm)]


def _identity(x: jax.Array) -> jax.Array:
    return x


def batch_stats_of(network: Any) -> BatchStats:
    """The batch statistics of `network`: the initial ones, or updated ones if it was called with `train=True`."""
    return nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))


def create(config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int, batch_size: int) -> Model:
    """The network of `config` for images of `image_shape` (height, width, channels), trained with `batch_size`.

    Raises:
        ConfigError: no network has this name; the network does not use an option that is set; the image is too small;
            or, for a transformer, the patches do not divide the image, the heads the width, or the tensor axis of the
            mesh the heads.
    """
    check_options(config)
    family = _FAMILY_OF[config.name]
    family.check_shapes(config, image_shape)
    build = partial(family.network, config=config, image_shape=image_shape, num_classes=num_classes)
    if not family.has_batch_norm:
        return Model(build, head_bias=config.head_bias)
    bn_group_size = batch_size // config.num_bn_groups
    return Model(partial(build, bn_group_size=bn_group_size), bn_group_size, config.head_bias)


def check_options(config: ModelConfig) -> None:
    """Raises ConfigError if no network has this name, or if the network does not use an option that is set."""
    if config.name not in _FAMILY_OF:
        raise ConfigError(_unknown_name(config.name))
    _FAMILY_OF[config.name].check_options(config)


def family_of(name: str) -> Family:
    """The family of the network `name`, which is one of `NAMES`."""
    return _FAMILY_OF[name]


def _unknown_name(name: str) -> str:
    return f"model.name is {name}, which is not a known network: {closest(name, NAMES)}choose one of {', '.join(NAMES)}"
