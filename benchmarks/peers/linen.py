"""ViT and ResNet as users of Flax Linen write them: Linen's layers, parameters in float32, computation in `dtype`.

They have the same parameters as the project's networks, under other names; `variables_like` renames them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gnp_scale.config import ModelConfig
from gnp_scale.models import resnet, vit

type Tree = Any


class Block(nn.Module):
    """A pre-norm transformer block."""

    mlp: int
    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` has examples, tokens and channels."""
        norm, dense = partial(nn.LayerNorm, dtype=self.dtype), partial(nn.Dense, dtype=self.dtype)
        attention: Any = nn.MultiHeadDotProductAttention(self.num_heads, dtype=self.dtype, name="attention")
        x = x + attention(norm(name="norm_attention")(x))
        y = dense(self.mlp, name="mlp_in_proj")(norm(name="norm_mlp")(x))
        return x + dense(x.shape[-1], name="mlp_out_proj")(nn.gelu(y))


class ViT(nn.Module):
    """Vision transformer with learned positions and the mean over tokens (arXiv 2010.11929)."""

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""
        size, dtype, patch = vit.size_of(self.config), self.config.dtype, (self.config.patch_size,) * 2
        x = nn.Conv(size.width, patch, patch, "VALID", dtype=dtype, name="embed")(x)
        x = x.reshape(len(x), -1, size.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:]).astype(dtype)
        for number in range(size.depth):
            x = Block(size.mlp, size.num_heads, dtype, name=f"blocks_{number:02d}")(x)
        x = jnp.mean(nn.LayerNorm(dtype=dtype, name="norm")(x), axis=1, dtype=jnp.float32)
        return nn.Dense(self.num_classes, name="head")(x)


class Residual(nn.Module):
    """relu(shortcut(x) + convolutions of x): two of 3x3, or a bottleneck of 1x1, 3x3 and 1x1."""

    width: int
    stride: int
    is_bottleneck: bool
    conv: Any
    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` has examples, height, width and channels."""
        narrow, wide = (self.width, 1, 1), (self.width, 3, self.stride)
        layers = [narrow, wide, (4 * self.width, 1, 1)] if self.is_bottleneck else [wide, (self.width, 3, 1)]
        y = x
        for number, (width, size, stride) in enumerate(layers, 1):
            is_last = number == len(layers)
            y = self.conv(width, (size, size), stride, size // 2, name=f"conv_{number}")(y)
            scale_init = nn.initializers.zeros if is_last else nn.initializers.ones
            y = self.norm(scale_init=scale_init, name=f"norm_{number}")(y)
            y = y if is_last else nn.relu(y)
        if x.shape != y.shape:
            x = self.norm(name="shortcut_norm")(self.conv(y.shape[-1], (1, 1), self.stride, name="shortcut_conv")(x))
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Residual network of version 1.5 (arXiv 1512.03385)."""

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Logits of images."""
        block, num_blocks = resnet.LAYOUTS[self.config.name]
        conv = partial(nn.Conv, use_bias=False, dtype=self.config.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, dtype=self.config.dtype)
        size, stride = (7, 2) if self.config.stem == "imagenet" else (3, 1)
        x = nn.relu(norm(name="norm")(conv(64, (size, size), stride, size // 2, name="conv")(x)))
        if self.config.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, length in enumerate(num_blocks):
            for number in range(length):
                stride, name = 2 if stage > 0 and number == 0 else 1, f"blocks_{stage}_{number:02d}"
                x = Residual(64 * 2**stage, stride, block is resnet.Bottleneck, conv, norm, name=name)(x)
        return nn.Dense(self.num_classes, name="head")(jnp.mean(x, axis=(1, 2), dtype=jnp.float32))


def create(config: ModelConfig, num_classes: int) -> nn.Module:
    """The peer of the project's network for `config`."""
    return (ViT if config.name in vit.SIZES else ResNet)(config, num_classes)


def variables_like(params: Tree, batch_stats: Tree) -> dict[str, Tree]:
    """The project's parameters and batch statistics as variables of the peer, with the same numbers."""
    found: dict[str, Tree] = {"params": _renamed(params)}
    return found | {"batch_stats": _renamed(batch_stats)} if batch_stats else found


def _renamed(tree: Tree) -> Tree:
    renamed: dict[str, Tree] = {}
    for name, value in tree.items():
        match name:
            case "blocks" | "mlp" | "shortcut":
                renamed |= {f"{name}_{inner}": _renamed(part) for inner, part in value.items()}
            case "attention":
                parts = {key: jnp.unstack(x, axis=-3) for key, x in value["in_proj"].items()}
                split = {
                    part: {key: parts[key][n] for key in parts} for n, part in enumerate(("query", "key", "value"))
                }
                renamed[name] = split | {"out": value["out_proj"]}
            case "head":
                renamed[name] = value.get("dense", value)
            case "variance":
                renamed["var"] = value
            case _:
                renamed[name] = _renamed(value) if isinstance(value, dict) else value
    return renamed
