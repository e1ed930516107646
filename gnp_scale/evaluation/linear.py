"""The linear probe: a linear classifier of features, whose regularisation is chosen on held-out training images.

T batches of B examples.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gnp_scale.config import check
from gnp_scale.evaluation.features import SHARDED, Features
from gnp_scale.evaluation.logistic import fit, guesses, num_right, standard_scale, zeros
from gnp_scale.monitoring.confusion import Guesses
from gnp_scale.run.stages import Stage, Stages

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6)
"""Of the regularisation, from strong to weak."""
HELD_OUT = 0.1
_GOLDEN = (5**0.5 - 1) / 2


class LinearProbe(NamedTuple):
    """The result."""

    top1: float
    strength: float
    """The regularisation that was chosen."""
    held_out_top1: float
    """Its accuracy on the part of the training images that is held out."""
    guesses: Guesses


def linear_probe(train: Features, test: Features, num_classes: int, num_images: int, stages: Stages) -> LinearProbe:
    """Fits a classifier to the features of `train`, and judges it on `test`, whose first `num_images` are examples.

    Each strength is tried without a tenth of the training images, and the one that classifies most of these correctly
    (of equal ones the strongest) is used on all, as in CLIP (arXiv 2103.00020, appendix A.3).

    Raises:
        ConfigError: there are too few training images to hold some out.
    """
    held_out_TxB = jax.jit(_held_out)(train)
    num_held_out = float(jnp.sum(held_out_TxB))
    check(
        num_held_out > 0,
        f"the data set has {train.num_counted()} usable training images, of which none can be held out: "
        "probe on a data set with at least 9",
    )
    scale, start = standard_scale(train), zeros(train.feature.shape[-1], num_classes)
    chosen, best, classifier = STRENGTHS[0], -1.0, start
    for strength in STRENGTHS:
        with stages.enter(Stage.EVALUATE, stages.now.step):
            classifier = fit(train, scale, train.mask - held_out_TxB, strength, classifier)
            top1 = float(num_right(classifier, scale, train, held_out_TxB)) / num_held_out
            chosen, best = (strength, top1) if top1 > best else (chosen, best)
    with stages.enter(Stage.EVALUATE, stages.now.step):
        classifier = fit(train, scale, train.mask, chosen, start)
        top1 = float(num_right(classifier, scale, test, test.mask)) / test.num_counted()
        found = guesses(classifier, scale, test)
    return LinearProbe(top1, chosen, best, Guesses.of([found], num_images, num_classes))


def _held_out(train: Features) -> jax.Array:
    """1 for a tenth of the examples, and 0 for all others (float32 T x B).

    Example n is held out if the fractional part of n times the golden ratio is at least 0.9. These are evenly spaced,
    at distances of 5, 8 and 13, and in step with no order of the classes, such as 0, 1, ..., 9, 0, 1, ...
    """
    shape = train.mask.shape
    is_held_out = np.arange(np.prod(shape)) * _GOLDEN % 1 >= 1 - HELD_OUT
    held_out_TxB = jnp.asarray(is_held_out.reshape(shape), jnp.float32)
    return train.mask * jax.sharding.reshard(held_out_TxB, SHARDED)
