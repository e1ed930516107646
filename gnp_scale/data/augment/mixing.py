"""Mixup and CutMix: the weights with which an example is mixed with the next one.

H rows, W columns, Q quantiles.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import DataConfig

NUM_QUANTILES = 4096
"""Number of different weights of mixup and areas of CutMix."""

_SWITCHES = (16, 17)
"""Folded into the key of mixing for the choice between mixup and CutMix, and for that of no mixing."""

type Shares = tuple[jax.Array, jax.Array]


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


def switched_shares(key: jax.Array, shape: tuple[int, int], config: DataConfig) -> Shares:
    """The weights by mixup or CutMix, whichever is on; if both are, CutMix with `mixup_switch_probability`.

    With probability 1 - `mixup_probability` they are 1. These are timm's `Mixup` with `mode="elem"`.
    """
    mixup, cutmix = config.mixup, config.cutmix
    share_HxW, share = mixup_shares(key, shape, mixup) if mixup else cutmix_shares(key, shape, cutmix)
    switch_key, is_on_key = (jax.random.fold_in(key, number) for number in _SWITCHES)
    if mixup and cutmix:
        switched = jax.random.bernoulli(switch_key, config.mixup_switch_probability)
        cut_HxW, cut = cutmix_shares(key, shape, cutmix)
        share_HxW, share = jnp.where(switched, cut_HxW, share_HxW), jnp.where(switched, cut, share)
    if config.mixup_probability == 1:
        return share_HxW, share
    is_on = jax.random.bernoulli(is_on_key, config.mixup_probability)
    return jnp.where(is_on, share_HxW, 1.0), jnp.where(is_on, share, 1.0)


@functools.cache
def beta_quantiles(concentration: float) -> np.ndarray:
    """Equally likely values of Beta(c, c), in float32.

    A random integer selects one of them. Each is a multiple of 1 / NUM_QUANTILES, so its products with pixels are exact
    in float32: the result is bitwise the same, however a compiler orders and fuses the arithmetic on a mesh.
    """
    from scipy.special import betaincinv  # This takes 0.2 s, and many runs need none.

    probability_Q = (np.arange(NUM_QUANTILES) + 0.5) / NUM_QUANTILES
    quantile_Q = betaincinv(concentration, concentration, probability_Q)
    return (np.round(quantile_Q * NUM_QUANTILES) / NUM_QUANTILES).astype(np.float32)
