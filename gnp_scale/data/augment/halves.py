"""Augmentation inside the compiled step: random draws for each example from its own key.

It is cheaper than on the host (`benchmarks/augmentation.py`), and has two halves. `prepare` keeps pixels as bytes, and
stores next to each example the one with which it will be mixed, on the same device. `finish` turns any subset of these
examples into float32. So when a step splits and moves a batch, it moves bytes.

B examples (of this device, inside `_prepare_rows`), H rows, W columns, C channels, K classes, Q quantiles.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from gnp_scale.config import DataConfig
from gnp_scale.data.augment.geometry import crop, flip
from gnp_scale.data.augment.mixing import cutmix_shares, mixup_shares
from gnp_scale.data.sources import Dataset
from gnp_scale.mesh import BATCH, batch_spec, on_mesh

AUGMENTATION = 2**31 - 1
"""Folded into an example's key for the draws here: layers fold in their numbers, which are much smaller."""

type Batch = dict[str, jax.Array]


def augment(batch: Batch, config: DataConfig, dataset: Dataset) -> Batch:
    """`batch` with its images augmented and normalised, and with `target`: its labels one-hot (B x K), or mixed.

    `batch` holds `image` (uint8 B x H x W x C), `label` (int32 B) and `key` (typed keys, B). The order is crop, flip,
    mixup or CutMix with the next example of the global batch, normalisation. The result does not depend on the mesh.
    """
    return finish(prepare(batch, config), config, dataset)


def prepare(batch: Batch, config: DataConfig) -> Batch:
    """`batch` cropped and flipped; if examples are mixed, `next_image` and `next_label` are those of the next example.

    This is the next example of the global batch; the last example is followed by the first.
    """
    prepare_rows = partial(_prepare_rows, config=config)
    return batch | _where_the_rows_lie(prepare_rows)(batch["image"], batch["label"], batch["key"])


def finish(examples: Batch, config: DataConfig, dataset: Dataset) -> Batch:
    """The input of the loss, from any examples of `prepare`: `image` (float32), `target` (float32 B x K), `label`,
    `key`.
    """
    return _where_the_rows_lie(partial(_finish_rows, config=config, dataset=dataset))(examples)


def normalise(image_BxHxWxC: jax.Array, dataset: Dataset) -> jax.Array:
    """Pixels in float32, minus the mean and divided by the standard deviation of the channel."""
    mean_C, std_C = (jnp.array(statistic, jnp.float32) for statistic in (dataset.mean, dataset.std))
    return (image_BxHxWxC.astype(jnp.float32) / 255 - mean_C[None, None, None]) / std_C[None, None, None]


def _keys(key_B: jax.Array) -> jax.Array:
    """Keys (3 x B) of crop, flip and mixing."""
    key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, AUGMENTATION)
    return jax.vmap(partial(jax.random.split, num=3), out_axes=1)(key_B)


def _prepare_rows(image_BxHxWxC: jax.Array, label_B: jax.Array, key_B: jax.Array, config: DataConfig) -> Batch:
    crop_key_B, flip_key_B, _ = _keys(key_B)
    image = image_BxHxWxC
    if config.crop_padding:
        highest = 2 * config.crop_padding + 1
        image = crop(
            image, jax.vmap(lambda key: jax.random.randint(key, (2,), 0, highest))(crop_key_B), config.crop_padding
        )
    if config.flip:
        image = flip(image, jax.vmap(jax.random.bernoulli)(flip_key_B))
    if not (config.mixup or config.cutmix):
        return {"image": image}
    return {"image": image, "next_image": _next_example(image), "next_label": _next_example(label_B)}


def _finish_rows(examples: Batch, config: DataConfig, dataset: Dataset) -> Batch:
    image_BxHxWxC, target_BxK = examples["image"], jax.nn.one_hot(examples["label"], dataset.num_classes)
    if "next_image" in examples:
        draw = partial(mixup_shares if config.mixup else cutmix_shares, concentration=config.mixup or config.cutmix)
        *_, key_B = _keys(examples["key"])
        share_BxHxW, share_B = jax.vmap(partial(draw, shape=image_BxHxWxC.shape[1:3]))(key_B)
        image_BxHxWxC = _mix(share_BxHxW[..., None], image_BxHxWxC, examples["next_image"])
        next_target_BxK = jax.nn.one_hot(examples["next_label"], dataset.num_classes)
        target_BxK = _mix(share_B[:, None], target_BxK, next_target_BxK)
    own = {name: x for name, x in examples.items() if not name.startswith("next_")}
    return own | {"image": normalise(image_BxHxWxC, dataset), "target": target_BxK}


def _mix(share: jax.Array, x_Bx: jax.Array, next_Bx: jax.Array) -> jax.Array:
    return share * x_Bx.astype(jnp.float32) + (1 - share) * next_Bx.astype(jnp.float32)


def _next_example(x_Bx: jax.Array) -> jax.Array:
    """The rows of the global batch shifted by one, the first to the end: neighbours exchange one row."""
    num_shards = 1 if jax.sharding.get_abstract_mesh().empty else jax.lax.axis_size(BATCH)
    first_1x = x_Bx[:1]
    if num_shards > 1:
        to_the_one_before = [(shard, (shard - 1) % num_shards) for shard in range(num_shards)]
        first_1x = jax.lax.ppermute(first_1x, BATCH, to_the_one_before)
    return jnp.concatenate([x_Bx[1:], first_1x])


def _where_the_rows_lie(function: Callable) -> Callable:
    if jax.sharding.get_abstract_mesh().empty:
        return function
    # Inside a `shard_map` that is manual over some axes, the rows are sharded over the others.
    spec = on_mesh(batch_spec())
    return jax.shard_map(function, in_specs=spec, out_specs=spec)
