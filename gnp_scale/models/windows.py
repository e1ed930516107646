"""Attention in windows of an image (arXiv 2103.14030), which may be shifted.

Channels are not sharded: `tensor` is one more axis of examples.

Shapes: B examples, H height, W width, C channels, M windows, N tokens of a window, D heads.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.nn.initializers import Initializer, normal
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.mesh import AXES, on_mesh
from gnp_scale.models.attention import by_xla
from gnp_scale.models.layers import SHARDS, Dense, add_bias, param, with_gathered_kernel
from gnp_scale.models.layouts import with_fast_gradient
from gnp_scale.models.recompute import ATTENTION

HEAD_CHANNELS = 32
_INIT = normal(0.02)

type Pair = tuple[int, int]
"""Height and width."""


def dense(
    key: jax.Array, formula: str, shape: tuple[int, ...], init: Initializer = _INIT, *, use_bias: bool = True
) -> Dense:
    """A layer for examples that are sharded over all axes of the mesh."""
    num_dims = len(formula.partition("->")[2])
    spec = P(SHARDS, *(None,) * (len(shape) - 1))
    out_spec = mesh.batch_spec(num_dims, AXES)
    return Dense(key, formula, shape, init=init, spec=spec, out_spec=out_spec, gathered=SHARDS, use_bias=use_bias)


def reshaped(x_Bx: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`x_Bx` in another shape with the same examples, sharded over all axes of the mesh."""
    return jnp.reshape(x_Bx, shape, out_sharding=on_mesh(mesh.batch_spec(len(shape), AXES)))


class WindowAttention(nnx.Module):
    """Attention in each window, with a learned bias for each head and each difference of two positions."""

    def __init__(self, key: jax.Array, num_channels: int, window: Pair) -> None:
        in_key, out_key, bias_key = jax.random.split(key, 3)
        num_heads = num_channels // HEAD_CHANNELS
        self.window = window
        self.in_proj = dense(in_key, "bmnc,ctdk->bmntdk", (num_channels, 3, num_heads, HEAD_CHANNELS))
        self.out_proj = dense(out_key, "bmndk,dkc->bmnc", (num_heads, HEAD_CHANNELS, num_channels))
        differences = (2 * window[0] - 1, 2 * window[1] - 1, num_heads)
        self.position = param(bias_key, normal(0.02), differences, P(None, None, None))

    def __call__(self, x_BxMxNxC: jax.Array, mask_MxNxN: np.ndarray | None) -> jax.Array:
        query, key, value = self._project(x_BxMxNxC)
        bias = self._position_bias()[None, None]
        if mask_MxNxN is not None:
            bias += mask_MxNxN[None, :, None]
        return self.out_proj(checkpoint_name(by_xla(query, key, value, bias), ATTENTION))

    def _project(self, x_BxMxNxC: jax.Array) -> list[jax.Array]:
        """Queries, keys and values (B x M x N x D x K) from one product of two matrices.

        For arrays of so many dimensions the TPU compiler finds no good layout: the product takes twice the cycles.
        """
        num_examples, num_windows, num_tokens, num_channels = x_BxMxNxC.shape
        x_WxNxC = reshaped(x_BxMxNxC, (num_examples * num_windows, num_tokens, num_channels))
        kernel, bias = self.in_proj.kernel[...], self.in_proj.bias
        assert bias is not None

        def project(x_WxNxC: jax.Array, kernel: jax.Array) -> jax.Array:
            spec = on_mesh(mesh.batch_spec(3, AXES))
            formula, kernel = with_fast_gradient("wnc,cf->wnf", kernel.reshape(num_channels, -1))
            return jnp.einsum(formula, x_WxNxC, kernel, out_sharding=spec)

        summed = mesh.axes_of_examples(x_WxNxC)
        y_WxNxF = with_gathered_kernel(project, kernel, self.in_proj.gathered, summed)(x_WxNxC, kernel)
        parts = jnp.split(add_bias(y_WxNxF, bias[...].reshape(-1)), 3, axis=-1)
        return [reshaped(part, (*x_BxMxNxC.shape[:3], -1, HEAD_CHANNELS)) for part in parts]

    def _position_bias(self) -> jax.Array:
        """The bias of each head for a query and a key (D x N x N).

        Two products with zeros and ones: their gradient is a sum in a fixed order, that of indexing is a scatter.
        """
        rows, columns = map(_differences, self.window)
        bias = jnp.einsum("ika,jlb,abd->dijkl", rows, columns, self.position[...], precision=jax.lax.Precision.HIGHEST)
        num_tokens = self.window[0] * self.window[1]
        return bias.reshape(-1, num_tokens, num_tokens)


def _differences(size: int) -> np.ndarray:
    """1 where the last index is that of the difference of the first two positions (size x size x (2 size - 1))."""
    position = np.arange(size)
    return np.eye(2 * size - 1, dtype=np.float32)[position[:, None] - position[None, :] + size - 1]


def to_windows(x_BxHxWxC: jax.Array, window: Pair) -> jax.Array:
    """The tokens of each window (B x M x N x C), both from left to right and from top to bottom."""
    num_examples, height, width, channels = x_BxHxWxC.shape
    rows, columns = height // window[0], width // window[1]
    x = reshaped(x_BxHxWxC, (num_examples, rows, window[0], columns, window[1], channels))
    return reshaped(x.swapaxes(2, 3), (num_examples, rows * columns, window[0] * window[1], channels))


def from_windows(x_BxMxNxC: jax.Array, size: Pair, window: Pair) -> jax.Array:
    """The image of `size` (B x H x W x C) that `to_windows` cut."""
    num_examples, *_, channels = x_BxMxNxC.shape
    x = reshaped(x_BxMxNxC, (num_examples, size[0] // window[0], size[1] // window[1], *window, channels))
    return reshaped(x.swapaxes(2, 3), (num_examples, *size, channels))


def shift_mask(size: Pair, window: Pair, shift: Pair) -> np.ndarray:
    """0 for two tokens of a window that are neighbours in the image, else -100 as in the authors' code (M x N x N).

    After the shift, the last windows of each row and column have tokens of both sides of the image.
    """
    wrapped = [np.arange(length) >= length - by for length, by in zip(size, shift, strict=True)]
    region_HxW = 2 * wrapped[0][:, None] + wrapped[1][None, :]
    rows, columns = size[0] // window[0], size[1] // window[1]
    region_MxN = region_HxW.reshape(rows, window[0], columns, window[1]).swapaxes(1, 2).reshape(rows * columns, -1)
    is_other = region_MxN[:, :, None] != region_MxN[:, None, :]
    return np.where(is_other, np.float32(-100), np.float32(0))
