"""Class-attention transformers, CaiT (arXiv 2103.17239): patches talk first, then a class token reads them.

Shapes: B examples, N tokens, D width, H and G heads, K channels of a head; Q x S: queries x keys.
"""

from collections.abc import Mapping
from functools import partial, reduce
from operator import add, mul

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import normal, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.config import ModelConfig
from gnp_scale.mesh import BATCH, FSDP, TENSOR, on_mesh
from gnp_scale.models import vit
from gnp_scale.models.attention import attend
from gnp_scale.models.family import Family
from gnp_scale.models.layers import SHARDS, Dense, LayerNorm, param
from gnp_scale.models.pooling import repeated
from gnp_scale.models.torch_weights import name_by_table
from gnp_scale.models.transformer import TOKENS, Attention, Block, Mlp, ViTConfig, check_heads
from gnp_scale.models.vit_sizes import check_shapes

NUM_CLASS_BLOCKS = 2

# The sizes of arXiv 2103.17239, with the initial factors of LayerScale of its authors' code, as in timm.
SIZES = {
    "cait_xxs24": ViTConfig(192, 24, 768, 4, deit=True, layer_scale=1e-5),
    "cait_xxs36": ViTConfig(192, 36, 768, 4, deit=True, layer_scale=1e-5),
    "cait_xs24": ViTConfig(288, 24, 1152, 6, deit=True, layer_scale=1e-5),
    "cait_s24": ViTConfig(384, 24, 1536, 8, deit=True, layer_scale=1e-5),
    "cait_s36": ViTConfig(384, 36, 1536, 8, deit=True, layer_scale=1e-6),
    "cait_m36": ViTConfig(768, 36, 3072, 16, deit=True, layer_scale=1e-6),
    "cait_m48": ViTConfig(768, 48, 3072, 16, deit=True, layer_scale=1e-6),
}
_HEADS = P(BATCH, None, TENSOR, None)

type Heads = tuple[jax.Array, ...]
"""For each head an array of B x Q x S."""


MANY_HEADS = 8
"""From so many heads on, a product with a matrix mixes them faster than sums of whole heads, whose number is H * H."""


class HeadMixing(nnx.Module):
    """A linear map of the heads, the same for each pair of a query and a key (arXiv 2003.02436), to float32."""

    def __init__(self, key: jax.Array, num_heads: int) -> None:
        self.kernel = param(key, normal(0.02), (num_heads, num_heads), P(None, None))
        self.bias = param(key, zeros, (num_heads,), P(None))

    def __call__(self, heads: Heads, *, scale: float = 1.0, with_bias: bool = True) -> Heads:
        """The mixed heads, times `scale` without the bias; few heads, of which each is an array."""
        mixed = _mixed(self._scaled_kernel(scale), heads)
        return tuple(map(add, mixed, jnp.unstack(self.bias[...]))) if with_bias else mixed

    def together(self, heads_BxHxQxS: jax.Array, *, scale: float = 1.0, with_bias: bool = True) -> jax.Array:
        """The same of many heads, with the kernel in their type."""
        kernel_HxG = self._scaled_kernel(scale).astype(heads_BxHxQxS.dtype)
        mixed_BxGxQxS = jnp.einsum("bhqs,hg->bgqs", heads_BxHxQxS, kernel_HxG, preferred_element_type=jnp.float32)
        return mixed_BxGxQxS + self.bias[...][None, :, None, None] if with_bias else mixed_BxGxQxS

    def _scaled_kernel(self, scale: float) -> jax.Array:
        # It may come in the type of the heads (`layers.gather_all`).
        return self.kernel[...].astype(jnp.float32) * scale


@jax.custom_vjp
def _mixed(kernel_HxG: jax.Array, heads: Heads) -> Heads:
    return mix_heads(kernel_HxG, heads)


@jax.jit
def mix_heads(kernel_HxG: jax.Array, heads: Heads) -> Heads:
    """For each g the sum over h of kernel[h, g] * heads[h], in float32.

    They are elementwise operations: a product with so small a matrix leaves most of a matrix unit idle.
    `monitoring/flops.py` knows this function by its name.
    """
    return tuple(reduce(add, map(mul, jnp.unstack(column_H), heads)) for column_H in jnp.unstack(kernel_HxG, axis=1))


def _mixed_backward(kept: tuple[jax.Array, Heads], gradients: Heads) -> tuple[jax.Array, Heads]:
    kernel_HxG, heads = kept
    product = partial(jnp.einsum, "bqs,bqs->b")
    d_kernel = [[product(head.astype(jnp.float32), gradient) for gradient in gradients] for head in heads]
    d_heads = mix_heads(kernel_HxG.T, gradients)
    # Over the examples at last, so that the devices add up all numbers at once.
    d_kernel_HxG = jnp.sum(jnp.stack([jnp.stack(row) for row in d_kernel]), axis=-1)
    return d_kernel_HxG, tuple(d_head.astype(head.dtype) for d_head, head in zip(d_heads, heads, strict=True))


_mixed.defvjp(lambda kernel, heads: (mix_heads(kernel, heads), (kernel, heads)), _mixed_backward)


class TalkingHeads(Attention):
    """Attention whose heads are mixed before and after the softmax.

    The products of queries and keys are rounded to their type, as the result of each layer is. Their mixture, the
    logits, is float32. A softmax does not depend on a number that is added to all its inputs, so the bias of the first
    mixing, which the published network has, is not added.

    Each device along `tensor` computes the weights of all heads, because they are more numbers than the queries, keys
    and values that it needs for them.
    """

    def __init__(self, key: jax.Array, size: ViTConfig) -> None:
        attention_key, logits_key, weights_key = jax.random.split(key, 3)
        super().__init__(attention_key, size)
        self.mix_logits = HeadMixing(logits_key, size.num_heads)
        self.mix_weights = HeadMixing(weights_key, size.num_heads)

    def attend(self, query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array) -> jax.Array:
        """For each query the average of the values, with weights that several heads agree on (B x N x H x K)."""
        parts = (mesh.gather(part, (TENSOR,)) for part in (query_BxNxHxK, key_BxNxHxK, value_BxNxHxK))
        attend = self._attend_together if query_BxNxHxK.shape[2] >= MANY_HEADS else self._attend_each
        return jnp.reshape(attend(*parts), query_BxNxHxK.shape, out_sharding=on_mesh(_HEADS))

    def _attend_each(self, query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array) -> jax.Array:
        dtype, num_channels = query_BxNxHxK.dtype, query_BxNxHxK.shape[-1]
        queries, keys, values = (jnp.unstack(part, axis=2) for part in (query_BxNxHxK, key_BxNxHxK, value_BxNxHxK))
        products = tuple(map(partial(jnp.einsum, "bqk,bsk->bqs"), queries, keys))
        logits = self.mix_logits(products, scale=num_channels**-0.5, with_bias=False)
        weights = self.mix_weights(tuple(jax.nn.softmax(each).astype(dtype) for each in logits))
        heads = [jnp.einsum("bqs,bsk->bqk", each.astype(dtype), v) for each, v in zip(weights, values, strict=True)]
        return jnp.stack(heads, axis=2)

    def _attend_together(self, query_BxNxHxK: jax.Array, key_BxNxHxK: jax.Array, value_BxNxHxK: jax.Array) -> jax.Array:
        dtype, num_channels = query_BxNxHxK.dtype, query_BxNxHxK.shape[-1]
        products_BxHxQxS = jnp.einsum("bqhk,bshk->bhqs", query_BxNxHxK, key_BxNxHxK)
        logits_BxHxQxS = self.mix_logits.together(products_BxHxQxS, scale=num_channels**-0.5, with_bias=False)
        weights_BxHxQxS = self.mix_weights.together(jax.nn.softmax(logits_BxHxQxS).astype(dtype))
        return jnp.einsum("bhqs,bshk->bqhk", weights_BxHxQxS.astype(dtype), value_BxNxHxK)


class TalkingBlock(Block):
    """A block of the patches."""

    def make_attention(self, key: jax.Array, size: ViTConfig) -> Attention:
        """The attention over the patches."""
        return TalkingHeads(key, size)


class ClassAttention(nnx.Module):
    """Multi-head attention of the first token to all tokens (arXiv 2103.17239, section 3).

    The bias of the keys, which the published network has, is not added: it changes all logits by the same number.
    """

    def __init__(self, key: jax.Array, size: ViTConfig) -> None:
        width, num_heads = size.width, size.num_heads
        self.num_heads = num_heads
        shape = (width, num_heads, width // num_heads)
        spec = P(FSDP, TENSOR, None)
        query_key, key_key, value_key, out_key = jax.random.split(key, 4)
        make = partial(Dense, formula="bnd,dhk->bnhk", shape=shape, init=normal(0.02), spec=spec, out_spec=_HEADS)
        self.query, self.key, self.value = make(query_key), make(key_key), make(value_key)
        self.out_proj = Dense(
            out_key,
            "bnhk,hkd->bnd",
            (num_heads, width // num_heads, width),
            init=normal(0.02),
            spec=P(TENSOR, None, FSDP),
            out_spec=TOKENS,
            initial_scale=size.layer_scale,
        )

    def __call__(self, x_BxNxD: jax.Array) -> jax.Array:
        """Its result for the first token (B x 1 x D)."""
        check_heads(self.num_heads)
        key_BxNxHxK = self.key(x_BxNxD, with_bias=False)
        return self.out_proj(attend(self.query(x_BxNxD[:, :1]), key_BxNxHxK, self.value(x_BxNxD), "xla"))


class ClassBlock(nnx.Module):
    """token + ClassAttention(LayerNorm(token and patches)), then token + MLP(LayerNorm(token)); drops nothing."""

    def __init__(self, key: jax.Array, size: ViTConfig) -> None:
        attention_key, mlp_key = jax.random.split(key)
        self.norm_attention = LayerNorm(key, size.width)
        self.attention = ClassAttention(attention_key, size)
        self.norm_mlp = LayerNorm(key, size.width)
        self.mlp = Mlp(mlp_key, size, dropout_rate=0.0)

    def __call__(self, token_Bx1xD: jax.Array, x_BxNxD: jax.Array) -> jax.Array:
        all_BxNxD = jnp.concatenate([token_Bx1xD, x_BxNxD], axis=1)
        token_Bx1xD += self.attention(self.norm_attention(all_BxNxD))
        return token_Bx1xD + self.mlp(self.norm_mlp(token_Bx1xD), None)


class Cait(vit.VisionTransformer):
    """Blocks of the patches, then two blocks that update a class token alone, which is the input of the head.

    Parameters are initialised as in DeiT-III. All blocks of the patches have the same probability of being dropped.
    """

    sizes: Mapping[str, ViTConfig] = SIZES

    def __init__(
        self, key: jax.Array, config: ModelConfig, image_shape: tuple[int, int, int], num_classes: int
    ) -> None:
        patches_key, token_key, *class_keys = jax.random.split(key, 2 + NUM_CLASS_BLOCKS)
        super().__init__(patches_key, config, image_shape, num_classes)
        self.token = param(token_key, normal(0.02), (1, self.size.width), P(None, SHARDS))
        self.class_blocks = nnx.Dict({f"{number}": ClassBlock(key, self.size) for number, key in enumerate(class_keys)})

    def block_type(self, size: ViTConfig) -> type[Block]:
        """The class of the blocks of the patches."""
        return TalkingBlock

    def pool(self, x_BxNxD: jax.Array) -> jax.Array:
        """The class token after its blocks (float32 B x D)."""
        token_Bx1xD = repeated(self.token, x_BxNxD)
        for block in self.class_blocks.values():
            token_Bx1xD = block(token_Bx1xD, x_BxNxD)
        return self.norm(token_Bx1xD).astype(jnp.float32)[:, 0]


_BLOCK_TORCH_NAMES = {
    **vit.BLOCK_TORCH_NAMES,
    "attention/query": "attn.q",
    "attention/key": "attn.k",
    "attention/value": "attn.v",
    "attention/mix_logits": "attn.proj_l",
    "attention/mix_weights": "attn.proj_w",
    "attention/out_proj/scale": "gamma_1",
    "mlp/out_proj/scale": "gamma_2",
}
_TORCH_STACKS = {"blocks": "blocks", "class_blocks": "blocks_token_only"}


def torch_name(path: str) -> str:
    """The name of a parameter in timm."""
    match path.split("/"):
        case ["blocks" | "class_blocks" as stack, number, *inner, leaf]:
            return f"{_TORCH_STACKS[stack]}.{int(number)}.{name_by_table(inner, leaf, _BLOCK_TORCH_NAMES)}"
        case _:
            return vit.torch_name(path)


FAMILY = Family(
    SIZES,
    Cait,
    ("patch_size", "depth", "width", "num_heads", "dropout", "drop_path", "remat", "scan_layers"),
    partial(check_shapes, sizes=SIZES),
)
