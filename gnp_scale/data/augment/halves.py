"""Augmentation inside the compiled step: random draws for each example from its own key.

`docs/augmentation.md` has its cost beside that on the host. It has two halves. `prepare` keeps pixels as bytes, and
stores next to each example the one with which it will be mixed, on the same device. `finish` turns any subset of these
examples into float32. So when a step splits and moves a batch, it moves bytes.

B examples (of this device, inside `_prepare_rows`), H rows, W columns, C channels, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from gnp_kernels.dispatch import platform

from gnp_scale.config import DataConfig, check
from gnp_scale.data.augment.erasing import cutout, random_erasing
from gnp_scale.data.augment.geometry import crop, flip
from gnp_scale.data.augment.jitter import color_jitter
from gnp_scale.data.augment.mixing import switched_shares
from gnp_scale.data.augment.policies import autoaugment, randaugment
from gnp_scale.data.augment.three_augment import three_augment
from gnp_scale.data.dataset import Dataset
from gnp_scale.mesh import BATCH, batch_spec, on_mesh

AUGMENTATION = 2**31 - 1
"""Folded into an example's key for the draws here: layers fold in their numbers, which are much smaller."""

type Batch = dict[str, jax.Array]


def augment(batch: Batch, config: DataConfig, dataset: Dataset) -> Batch:
    """`batch` with its images augmented and normalised, and with `target`: its labels one-hot (B x K), or mixed.

    `batch` holds `image` (uint8 B x H x W x C), `label` (int32 B) and `key` (typed keys, B). The order is crop, flip,
    policy, colour jitter, mixup or CutMix with the next example of the global batch, normalisation, random erasing,
    cutout. The result does not depend on the mesh.

    Raises:
        ConfigError: an option has no meaning for images of this size or number of channels.
    """
    return finish(prepare(batch, config), config, dataset)


def prepare(batch: Batch, config: DataConfig, mixes: jax.Array | None = None) -> Batch:
    """The operations on bytes; if examples are mixed, `next_image` and `next_label` are those of the next example.

    This is the next example of the global batch; the last example is followed by the first. Where `mixes` is False,
    each example is mixed with itself, which leaves it as it is.

    Raises:
        ConfigError: an option has no meaning for images of this size or number of channels.
    """
    _check_images(config, batch["image"].shape[1:])
    prepare_rows = partial(_prepare_rows, config=config)
    examples = batch | _where_the_rows_lie(prepare_rows)(batch["image"], batch["label"], batch["key"])
    if mixes is None or "next_image" not in examples:
        return examples
    partners = {
        f"next_{name}": jnp.where(mixes, examples[f"next_{name}"], examples[name]) for name in ("image", "label")
    }
    return examples | partners


def finish(examples: Batch, config: DataConfig, dataset: Dataset) -> Batch:
    """The input of the loss, from any examples of `prepare`: `image` (float32), `target` (float32 B x K), `label`,
    `key`.
    """
    return _where_the_rows_lie(partial(_finish_rows, config=config, dataset=dataset))(examples)


def normalise(image_BxHxWxC: jax.Array, dataset: Dataset) -> jax.Array:
    """Pixels in float32, minus the mean and divided by the standard deviation of the channel."""
    mean_C, std_C = (jnp.array(statistic, jnp.float32) for statistic in (dataset.mean, dataset.std))
    return (image_BxHxWxC.astype(jnp.float32) / 255 - mean_C[None, None, None]) / std_C[None, None, None]


def _check_images(config: DataConfig, shape: tuple[int, ...]) -> None:
    height, width, num_channels = shape
    check(
        config.cutout <= min(height, width),
        f"data.cutout is {config.cutout}, but the images of data.name {config.name} have {height} x {width} pixels: "
        f"set it to at most {min(height, width)}",
    )
    for name in ("saturation", "hue"):
        value = getattr(config, name)
        check(
            num_channels == 3 or not value,
            f"data.{name} is {value}, but the images of data.name {config.name} have {num_channels} channel and no "
            "colour: set it to 0",
        )


class _Keys(NamedTuple):
    """A key (B) for each purpose."""

    crop: jax.Array
    flip: jax.Array
    mixing: jax.Array
    policy: jax.Array
    jitter: jax.Array
    erasing: jax.Array
    cutout: jax.Array

    @classmethod
    def of(cls, key_B: jax.Array) -> Self:
        """The keys that follow from those of the examples."""
        key_B = jax.vmap(jax.random.fold_in, (0, None))(key_B, AUGMENTATION)
        return cls(*jax.vmap(partial(jax.random.split, num=len(cls._fields)), out_axes=1)(key_B))


def _prepare_rows(image_BxHxWxC: jax.Array, label_B: jax.Array, key_B: jax.Array, config: DataConfig) -> Batch:
    keys, image = _Keys.of(key_B), image_BxHxWxC
    if config.crop_padding:
        highest = 2 * config.crop_padding + 1
        offset_Bx2 = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, highest))(keys.crop)
        image = crop(image, offset_Bx2, config.crop_padding)
    if config.flip:
        image = flip(image, jax.vmap(jax.random.bernoulli)(keys.flip))
    if policy := _policy(config):
        image = _each(policy)(keys.policy, image)
    if config.brightness or config.contrast or config.saturation or config.hue:
        image = _each(partial(color_jitter, config=config))(keys.jitter, image)
    if not (config.mixup or config.cutmix):
        return {"image": image}
    return {"image": image, "next_image": _next_example(image), "next_label": _next_example(label_B)}


def _policy(config: DataConfig) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
    match config.policy:
        case "none":
            return None
        case "randaugment":
            return partial(randaugment, num_ops=config.randaugment_num_ops, level=config.randaugment_magnitude)
        case "three_augment":
            return three_augment
    return partial(autoaugment, policy=config.policy)


def _each(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`function(key, image)` for each row.

    Its `switch` takes one branch for each image in a loop; for a batch at once it takes all. The loop is cheaper on
    CPUs only (`docs/augmentation.md`). The result is the same.
    """
    if platform() == "cpu":
        return lambda key_B, image_BxHxWxC: jax.lax.map(lambda row: function(*row), (key_B, image_BxHxWxC))
    return jax.vmap(function)


def _finish_rows(examples: Batch, config: DataConfig, dataset: Dataset) -> Batch:
    image_BxHxWxC, target_BxK = examples["image"], jax.nn.one_hot(examples["label"], dataset.num_classes)
    keys = _Keys.of(examples["key"])
    if "next_image" in examples:
        _, height, width, _ = image_BxHxWxC.shape
        draw = partial(switched_shares, shape=(height, width), config=config)
        share_BxHxW, share_B = jax.vmap(draw)(keys.mixing)
        image_BxHxWxC = _mix(share_BxHxW[..., None], image_BxHxWxC, examples["next_image"])
        next_target_BxK = jax.nn.one_hot(examples["next_label"], dataset.num_classes)
        target_BxK = _mix(share_B[:, None], target_BxK, next_target_BxK)
    image_BxHxWxC = normalise(image_BxHxWxC, dataset)
    if config.random_erasing:
        image_BxHxWxC = jax.vmap(partial(random_erasing, config=config))(keys.erasing, image_BxHxWxC)
    if config.cutout:
        image_BxHxWxC = jax.vmap(partial(cutout, size=config.cutout))(keys.cutout, image_BxHxWxC)
    own = {name: x for name, x in examples.items() if not name.startswith("next_")}
    return own | {"image": image_BxHxWxC, "target": target_BxK}


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
