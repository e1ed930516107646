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
import numpy as np
import scipy.special

from gnp_scale.config import DataConfig
from gnp_scale.data.sources import Dataset
from gnp_scale.mesh import BATCH, batch_spec, on_mesh

AUGMENTATION = 2**31 - 1
"""Folded into an example's key for the draws here: layers fold in their numbers, which are much smaller."""
NUM_QUANTILES = 4096
"""Number of different weights of mixup and areas of CutMix."""

type Batch = dict[str, jax.Array]
type Shares = tuple[jax.Array, jax.Array]


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


def crop(image_BxHxWxC: jax.Array, offset_Bx2: jax.Array, padding: int) -> jax.Array:
    """A window of the original size, at `offset` in the images with a border of `padding` reflected pixels."""
    padded = jnp.pad(image_BxHxWxC, ((0, 0), (padding, padding), (padding, padding), (0, 0)), mode="reflect")

    def window(image: jax.Array, offset_2: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (offset_2[0], offset_2[1], 0), image_BxHxWxC.shape[1:])

    return jax.vmap(window)(padded, offset_Bx2)


def flip(image_BxHxWxC: jax.Array, flipped_B: jax.Array) -> jax.Array:
    """The images, mirrored left to right where `flipped`."""
    return jnp.where(flipped_B[:, None, None, None], image_BxHxWxC[:, :, ::-1], image_BxHxWxC)


def mixup_shares(key: jax.Array, shape: tuple[int, int], concentration: float) -> Shares:
    """Weight of an example in each pixel (H x W) and in its target: one draw of Beta(c, c) (arXiv 1710.09412)."""
    share = jnp.array(beta_quantiles(concentration))[jax.random.randint(key, (), 0, NUM_QUANTILES)]
    return jnp.full(shape, share), share


def cutmix_shares(key: jax.Array, shape: tuple[int, int], concentration: float) -> Shares:
    """Weight of an example in each pixel (H x W), 0 in a random box, and in its target, the area outside the box.

    The box has 1 - Beta(c, c) of the area before it is clipped to the image (arXiv 1905.04899, section 3.1).
    """
    area_key, *centre_keys = jax.random.split(key, 3)
    side_Q = np.sqrt(1 - beta_quantiles(concentration))
    quantile = jax.random.randint(area_key, (), 0, NUM_QUANTILES)

    def inside(centre_key: jax.Array, size: int) -> jax.Array:
        half = jnp.array((side_Q * size).astype(np.int32) // 2)[quantile]
        centre = jax.random.randint(centre_key, (), 0, size)
        place = jnp.arange(size)
        return (place >= centre - half) & (place < centre + half)

    inside_H, inside_W = (inside(centre_key, size) for centre_key, size in zip(centre_keys, shape, strict=True))
    share_HxW = 1.0 - (inside_H[:, None] & inside_W[None, :])
    return share_HxW, jnp.mean(share_HxW)


def beta_quantiles(concentration: float) -> np.ndarray:
    """Equally likely values of Beta(c, c), in float32.

    A random integer selects one of them. Each is a multiple of 1 / NUM_QUANTILES, so its products with pixels are exact
    in float32: the result is bitwise the same, however a compiler orders and fuses the arithmetic on a mesh.
    """
    probability_Q = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    quantile_Q = scipy.special.betaincinv(concentration, concentration, probability_Q)
    return (np.round(quantile_Q * NUM_QUANTILES) / NUM_QUANTILES).astype(np.float32)


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
