"""Losses and correctness of a classifier, one number per example, in float32.

B: examples, K: classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from gnp_kernels.trees import upcast


def softmax_cross_entropy(logits_BxK: jax.Array, label_BxK: jax.Array) -> jax.Array:
    """Cross-entropy -sum_k label_k * log softmax(logits)_k of each example, in nats.

    Args:
        logits_BxK: unnormalised log probabilities, finite, in any floating type; the loss is computed in float32.
        label_BxK: probabilities of the classes; each row sums to 1.

    Returns:
        loss_B, float32.
    """
    return optax.softmax_cross_entropy(logits_BxK.astype(jnp.float32), label_BxK)


def sigmoid_cross_entropy(logits_BxK: jax.Array, label_BxK: jax.Array) -> jax.Array:
    """Binary cross-entropies -label_k * log s(logits_k) - (1 - label_k) * log s(-logits_k), summed over the classes.

    s is the logistic function (arXiv 2006.07159, section 5).

    Args:
        logits_BxK: log odds, finite, in any floating type; the loss is computed in float32.
        label_BxK: targets of the classes, each in [0, 1].

    Returns:
        loss_B in nats, float32.
    """
    return jnp.sum(optax.sigmoid_binary_cross_entropy(logits_BxK.astype(jnp.float32), label_BxK), axis=-1)


def binary_cross_entropy(logits_BxK: jax.Array, label_BxK: jax.Array) -> jax.Array:
    """`sigmoid_cross_entropy` divided by the number of classes, as timm's `BinaryCrossEntropy`."""
    return sigmoid_cross_entropy(logits_BxK, label_BxK) / logits_BxK.shape[-1]


LOSSES = {"softmax": softmax_cross_entropy, "sigmoid": sigmoid_cross_entropy, "bce": binary_cross_entropy}
"""By the value of `train.loss`."""


def above(label_BxK: jax.Array, threshold: float | None) -> jax.Array:
    """1 where a label is above the threshold, else 0 (as in timm); None leaves labels as they are."""
    return label_BxK if threshold is None else (label_BxK > threshold).astype(label_BxK.dtype)


def smooth(label_BxK: jax.Array, smoothing: float) -> jax.Array:
    """Labels with a fraction `smoothing` of the mass spread evenly over the classes (arXiv 1512.00567, section 7)."""
    return optax.smooth_labels(label_BxK, smoothing)


def top_k_correct(logits_BxK: jax.Array, label_B: jax.Array, k: int) -> jax.Array:
    """1.0 where the label is among the `k` classes of largest logits, else 0.0.

    If logits are equal, the class of lower index comes first, as in `jax.lax.top_k`, so that a constant network is not
    always right; NaN counts against the label. With `k >= K` every label is among them. It uses only comparisons,
    without sorting, so examples and classes may be sharded.

    Args:
        logits_BxK: scores of the classes.
        label_B: integers in [0, K).
        k: number of guesses per example.

    Returns:
        correct_B, float32.
    """
    num_classes = logits_BxK.shape[-1]
    class_1xK, label_Bx1 = jnp.arange(num_classes)[None], label_B[:, None]
    label_logit_Bx1 = jnp.sum(jnp.where(class_1xK == label_Bx1, logits_BxK, 0), axis=-1)[:, None]
    is_tie_behind_BxK = (logits_BxK == label_logit_Bx1) & (class_1xK > label_Bx1)
    num_behind_B = jnp.sum((logits_BxK < label_logit_Bx1) | is_tie_behind_BxK, axis=-1)
    return (num_classes - 1 - num_behind_B < k).astype(jnp.float32)


def l2(params: Any, factor: float, mask: Any) -> jax.Array:
    """factor / 2 * sum of the squares of the parameters where `mask` is True, in float32; a term of the loss.

    Args:
        params: pytree of arrays, in any floating type.
        factor: the coefficient; the gradient of the term is `factor * params`.
        mask: pytree of bool of the same structure (`optim.decay_mask`).
    """
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(mask), strict=True)
    decayed = [upcast(w) for w, is_decayed in leaves if is_decayed]
    return factor / 2 * optax.tree.norm(decayed, squared=True)
