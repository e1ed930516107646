"""Other networks as users of Flax Linen write them plainly: no sharding, parameters in float32, computation in `dtype`.

They have as many parameters and FLOPs as the project's networks (`tests/test_peers.py`).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gnp_scale.config import ModelConfig
from gnp_scale.models import cait, convnext, mixer, swin


class Scale(nn.Module):
    """A learned factor of each channel."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` ends with channels."""
        return x * self.param("gamma", nn.initializers.constant(1e-6), x.shape[-1:]).astype(x.dtype)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    width: int
    dtype: Any
    approximate: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` ends with the channels that are mixed."""
        y = nn.gelu(nn.Dense(self.width, dtype=self.dtype)(x), approximate=self.approximate)
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y)


class Mixer(nn.Module):
    """MLP-Mixer (arXiv 2105.01601)."""

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        size, dtype, patch = mixer.SIZES[self.config.name], self.config.dtype, (self.config.patch_size,) * 2
        norm = partial(nn.LayerNorm, dtype=dtype)
        x = nn.Conv(size.width, patch, patch, "VALID", dtype=dtype)(x)
        x = x.reshape(len(x), -1, size.width)
        for _ in range(size.depth):
            y = jnp.swapaxes(norm()(x), 1, 2)
            x = x + jnp.swapaxes(Mlp(size.mlp_tokens, dtype)(y), 1, 2)
            x = x + Mlp(size.mlp_channels, dtype)(norm()(x))
        return nn.Dense(self.num_classes)(jnp.mean(norm()(x), axis=1, dtype=jnp.float32))


class ConvNeXt(nn.Module):
    """ConvNeXt (arXiv 2201.03545)."""

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        size, dtype = convnext.SIZES[self.config.name], self.config.dtype
        norm, conv = partial(nn.LayerNorm, dtype=dtype), partial(nn.Conv, dtype=dtype)
        for stage, (depth, width) in enumerate(zip(size.depths, size.widths, strict=True)):
            kernel = (4, 4) if stage == 0 else (2, 2)
            x = x if stage == 0 else norm()(x)
            x = conv(width, kernel, kernel, "VALID")(x)
            x = norm()(x) if stage == 0 else x
            for _ in range(depth):
                y = norm()(conv(width, (7, 7), feature_group_count=width)(x))
                x = x + Scale()(Mlp(4 * width, dtype, approximate=False)(y))
        return nn.Dense(self.num_classes)(nn.LayerNorm()(jnp.mean(x, axis=(1, 2), dtype=jnp.float32)))


class Windows(nn.Module):
    """Attention in windows of an image, which may be shifted, with a bias for each difference of positions.

    Logits are float32, as in the network of this project.
    """

    num_heads: int
    window: int
    shift: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` has examples, height, width and channels."""
        num, height, width, channels = x.shape
        size, heads = self.window, self.num_heads
        rows, columns = height // size, width // size
        x = jnp.roll(x, (-self.shift, -self.shift), (1, 2)) if self.shift else x
        x = x.reshape(num, rows, size, columns, size, channels).swapaxes(2, 3).reshape(-1, size**2, channels)
        query, key, value = jnp.split(nn.Dense(3 * channels, dtype=self.dtype)(x), 3, axis=-1)
        query, key, value = (part.reshape(*x.shape[:2], heads, -1) for part in (query, key, value))
        product = partial(jnp.einsum, preferred_element_type=jnp.float32)
        logits = product("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key) + self._bias()
        if self.shift:
            logits = logits.reshape(num, -1, *logits.shape[1:]) + self._mask(rows, columns)[None, :, None]
            logits = logits.reshape(-1, *logits.shape[2:])
        weights = nn.softmax(logits).astype(self.dtype)
        y = nn.Dense(channels, dtype=self.dtype)(jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape))
        y = y.reshape(num, rows, columns, size, size, channels).swapaxes(2, 3).reshape(num, height, width, channels)
        return jnp.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y

    def _bias(self) -> jax.Array:
        side = 2 * self.window - 1
        table = self.param("position", nn.initializers.normal(0.02), (side**2, self.num_heads))
        place = jnp.stack(jnp.meshgrid(*(jnp.arange(self.window),) * 2, indexing="ij"), -1).reshape(-1, 2)
        difference = place[:, None] - place[None] + self.window - 1
        bias = table[difference[..., 0] * side + difference[..., 1]]
        return jnp.moveaxis(bias, -1, 0)

    def _mask(self, rows: int, columns: int) -> jax.Array:
        """Minus infinity, nearly, between tokens of a shifted window that are not neighbours in the image."""
        size, shift = self.window, self.shift
        regions = [np.repeat(np.arange(3), [n * size - size, size - shift, shift]) for n in (rows, columns)]
        region = (3 * regions[0][:, None] + regions[1]).reshape(rows, size, columns, size)
        region = region.swapaxes(1, 2).reshape(-1, size**2)
        return jnp.asarray(np.where(region[:, :, None] == region[:, None], 0.0, -100.0), jnp.float32)


class Swin(nn.Module):
    """Swin transformer (arXiv 2103.14030)."""

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of square images."""
        (channels, depths), dtype, window = swin.LAYOUTS[self.config.name], self.config.dtype, x.shape[1] // 32
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=dtype)
        x = norm()(nn.Conv(channels, (4, 4), (4, 4), "VALID", dtype=dtype)(x))
        for stage, depth in enumerate(depths):
            if stage > 0:
                x = jnp.concatenate([x[:, i::2, j::2] for j in range(2) for i in range(2)], axis=-1)
                channels *= 2
                x = nn.Dense(channels, use_bias=False, dtype=dtype)(norm()(x))
            for number in range(depth):
                shift = window // 2 if number % 2 and stage < len(depths) - 1 else 0
                x = x + Windows(channels // 32, window, shift, dtype)(norm()(x))
                x = x + Mlp(4 * channels, dtype, approximate=False)(norm()(x))
        return nn.Dense(self.num_classes)(jnp.mean(norm()(x), axis=(1, 2), dtype=jnp.float32))


class TalkingHeads(nn.Module):
    """Attention whose heads are mixed before and after the softmax (arXiv 2003.02436)."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` has examples, tokens and channels."""
        channels, heads = x.shape[-1], self.num_heads
        query, key, value = jnp.split(nn.Dense(3 * channels, dtype=self.dtype)(x), 3, axis=-1)
        query, key, value = (part.reshape(*x.shape[:2], heads, -1) for part in (query, key, value))
        logits = jnp.einsum("bqhd,bkhd->bqkh", query * query.shape[-1] ** -0.5, key)
        logits = nn.Dense(heads, dtype=self.dtype)(logits)
        weights = nn.softmax(logits.astype(jnp.float32), axis=2).astype(self.dtype)
        weights = nn.Dense(heads, dtype=self.dtype)(weights)
        return nn.Dense(channels, dtype=self.dtype)(jnp.einsum("bqkh,bkhd->bqhd", weights, value).reshape(x.shape))


class ClassAttention(nn.Module):
    """Attention of the first token to all tokens."""

    num_heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`x` has examples, tokens and channels."""
        dense = partial(nn.DenseGeneral, (self.num_heads, x.shape[-1] // self.num_heads), dtype=self.dtype)
        query, key, value = dense()(x[:, :1]), dense()(x), dense()(x)
        y = nn.dot_product_attention(query, key, value, dtype=self.dtype)
        return nn.Dense(x.shape[-1], dtype=self.dtype)(y.reshape(len(x), 1, -1))


class Cait(nn.Module):
    """CaiT (arXiv 2103.17239)."""

    config: ModelConfig
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits of images."""
        size, dtype, patch = cait.SIZES[self.config.name], self.config.dtype, (self.config.patch_size,) * 2
        norm, mlp = partial(nn.LayerNorm, dtype=dtype), partial(Mlp, size.mlp, dtype, approximate=False)
        x = nn.Conv(size.width, patch, patch, "VALID", dtype=dtype)(x).reshape(len(x), -1, size.width)
        x = x + self.param("position", nn.initializers.normal(0.02), x.shape[1:]).astype(dtype)
        for _ in range(size.depth):
            x = x + Scale()(TalkingHeads(size.num_heads, dtype)(norm()(x)))
            x = x + Scale()(mlp()(norm()(x)))
        token = self.param("token", nn.initializers.normal(0.02), (1, 1, size.width)).astype(dtype)
        token = jnp.broadcast_to(token, (len(x), 1, size.width))
        for _ in range(cait.NUM_CLASS_BLOCKS):
            joined = norm()(jnp.concatenate([token, x], axis=1))
            token = token + Scale()(ClassAttention(size.num_heads, dtype)(joined))
            token = token + Scale()(mlp()(norm()(token)))
        return nn.Dense(self.num_classes)(norm()(token)[:, 0].astype(jnp.float32))
