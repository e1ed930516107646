"""Batch normalisation over groups of examples, on one device or over several.

Shapes: B examples, H height, W width, C channels, G groups of examples.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.nn.initializers import Initializer, ones, zeros
from jax.sharding import PartitionSpec as P

from gnp_scale import mesh
from gnp_scale.config import check
from gnp_scale.mesh import AXES, on_mesh
from gnp_scale.models.conv_layers import shard_examples
from gnp_scale.models.layers import param


class BatchNorm(nnx.Module):
    """Batch normalisation with the statistics of groups of `group_size` consecutive examples of the global batch.

    In training, each group is normalised by its own mean and variance. The running statistics move by a tenth towards
    the averages over the groups. The position of an example in the batch determines its group, never its device.
    Examples are sharded over all axes of the mesh. Scale, bias and statistics are replicated.

    A group on several devices costs one all-reduce in the forward pass and one in the backward pass. If each group is
    on one device, there are none.

    If `is_frozen`, training normalises with the running statistics as evaluation does, and does not move them.
    """

    is_frozen = False
    eps = 1e-5
    momentum = 0.9

    def __init__(self, key: jax.Array, num_channels: int, group_size: int, scale_init: Initializer = ones) -> None:
        shape, spec = (num_channels,), P(None)
        self.group_size = group_size
        self.scale = param(key, scale_init, shape, spec)
        self.bias = param(key, zeros, shape, spec)
        self.mean = nnx.BatchStat(zeros(key, shape, jnp.float32, out_sharding=mesh.divisible_spec(spec, shape)))
        self.variance = nnx.BatchStat(ones(key, shape, jnp.float32, out_sharding=mesh.divisible_spec(spec, shape)))

    def __call__(self, x_BxHxWxC: jax.Array, train: bool) -> jax.Array:
        if train and not self.is_frozen:
            mean_GxC, variance_GxC = self._statistics(x_BxHxWxC)
            self._move(self.mean, mean_GxC)
            self._move(self.variance, variance_GxC)
        else:
            mean_GxC, variance_GxC = self.mean[...][None], self.variance[...][None]
        factor_GxC = jax.lax.rsqrt(variance_GxC + self.eps) * self.scale[...][None]
        offset_GxC = self.bias[...][None] - mean_GxC * factor_GxC
        # One multiplication and one addition for each element, in float32.
        factor, offset = (self._of_group(value_GxC, len(x_BxHxWxC)) for value_GxC in (factor_GxC, offset_GxC))
        return (x_BxHxWxC * factor + offset).astype(x_BxHxWxC.dtype)

    def _statistics(self, x_BxHxWxC: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of each group from one pass over `x_BxHxWxC`, in float32.

        It squares differences from the running mean, so a mean far from 0 loses no digits. The relative error of the
        variance is up to 32 ulps times 1 + (mean - running mean)^2 / variance.
        """
        shift_1xC = jax.lax.stop_gradient(self.mean[...])[None]
        difference = x_BxHxWxC.astype(jnp.float32) - shift_1xC[:, None, None]
        mean_GxC, square_GxC = map(self._group_means, (difference, jnp.square(difference)))
        return mean_GxC + shift_1xC, jnp.maximum(square_GxC - jnp.square(mean_GxC), 0)

    def _group_means(self, x_BxHxWxC: jax.Array) -> jax.Array:
        num_examples = len(x_BxHxWxC)
        num_groups = self._num_groups(num_examples)
        if num_groups == 1:
            return jnp.mean(x_BxHxWxC, axis=(0, 1, 2))[None]
        mean_BxC = jnp.mean(x_BxHxWxC, axis=(1, 2))
        if _are_local(num_groups):
            shape = (num_groups, self.group_size, mean_BxC.shape[1])
            return jnp.mean(jnp.reshape(mean_BxC, shape, out_sharding=on_mesh(P(AXES, None, None))), axis=1)
        member_BxG = self._membership(num_examples)
        return _exact_einsum("bg,bc->gc", member_BxG, mean_BxC, on_mesh(P(None, None))) / self.group_size

    def _of_group(self, value_GxC: jax.Array, num_examples: int) -> jax.Array:
        """The value of each example's group, of shape Bx1x1xC, or 1x1x1xC if there is only one group."""
        num_groups, num_channels = value_GxC.shape
        if num_groups == 1:
            return value_GxC[:, None, None]
        if _are_local(num_groups):
            shape = (num_groups, self.group_size, num_channels)
            value = jnp.broadcast_to(value_GxC[:, None], shape, out_sharding=on_mesh(P(AXES, None, None)))
            shape, spec = (num_examples, 1, 1, num_channels), on_mesh(P(AXES, None, None, None))
            return jnp.reshape(value, shape, out_sharding=spec)
        member_BxG = self._membership(num_examples)
        value_BxC = _exact_einsum("bg,gc->bc", member_BxG, value_GxC, on_mesh(P(AXES, None)))
        return value_BxC[:, None, None, :]

    def _num_groups(self, num_examples: int) -> int:
        check(
            num_examples % self.group_size == 0,
            f"{num_examples} examples of one pass do not divide into groups of {self.group_size} with their own batch "
            "statistics: make model.num_bn_groups a multiple of train.accumulate_steps, of "
            "gnp.perturb_groups and of 1 / gnp.ascent_fraction together",
        )
        return num_examples // self.group_size

    def _membership(self, num_examples: int) -> jax.Array:
        group_B = jnp.arange(num_examples) // self.group_size
        member_BxG = jax.nn.one_hot(group_B, num_examples // self.group_size)
        return shard_examples(member_BxG, AXES)

    def _move(self, running: nnx.BatchStat, value_GxC: jax.Array) -> None:
        value_C = jnp.mean(value_GxC, axis=0)
        running[...] = self.momentum * running[...] + (1 - self.momentum) * value_C


def _are_local(num_groups: int) -> bool:
    """Whether each group of examples is on one device."""
    return num_groups % mesh.current_axis_size(AXES) == 0


def _exact_einsum(formula: str, member_BxG: jax.Array, x: jax.Array, out_sharding: P | None) -> jax.Array:
    # HIGHEST, because the default rounds x to bfloat16 on TPUs.
    return jnp.einsum(formula, member_BxG, x, precision=jax.lax.Precision.HIGHEST, out_sharding=out_sharding)
