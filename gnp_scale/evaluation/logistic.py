"""Multinomial logistic regression on standardised features, to its optimum, on all devices.

T batches of B examples, D features, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gnp_scale.data.dataset import UNREADABLE
from gnp_scale.evaluation.features import SHARDED, Features
from gnp_scale.mesh import BATCH, REPLICATED, on_shards

_MOST_UPDATES, _MOST_STALLED = 1000, 3
_LARGEST_GRADIENT = 1e-7
"""Of the mean loss: for weak regularisation, 1e-5 ends with a loss that is 10 % above the optimum."""


class Scale(NamedTuple):
    """Mean and standard deviation of each feature."""

    mean: jax.Array
    """float32 D."""
    std: jax.Array
    """float32 D."""


class Classifier(NamedTuple):
    """Logits are (feature - mean) / std @ kernel + bias."""

    kernel: jax.Array
    """float32 D x K."""
    bias: jax.Array
    """float32 K."""


@jax.jit
def standard_scale(train: Features) -> Scale:
    """Of the examples that count. A feature that is the same for all, up to rounding, has the standard deviation 1."""
    mask_TxBx1, count = train.mask[..., None], jnp.sum(train.mask)
    mean_D = jnp.sum(train.feature * mask_TxBx1, (0, 1)) / count
    offset_TxBxD = train.feature - mean_D[None, None]
    std_D = jnp.sqrt(jnp.sum(offset_TxBxD**2 * mask_TxBx1, (0, 1)) / count)
    return Scale(mean_D, jnp.where(std_D > 1e-6 * jnp.abs(mean_D), std_D, 1.0))


@jax.jit
def fit(train: Features, scale: Scale, weight_TxB: jax.Array, strength: float, start: Classifier) -> Classifier:
    """Minimises sum_n weight_n * loss_n / sum_n weight_n + strength / 2 * ||kernel||^2 by L-BFGS, from `start`.

    The loss is the cross-entropy of standardised features; the bias is not regularised. scikit-learn's C is
    1 / (strength * sum_n weight_n). It ends when no entry of the gradient is above 1e-7, when the objective has not
    fallen in float32 in three updates, or after 1,000 updates.
    """
    objective = _objective(train, scale, weight_TxB, strength)
    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def update(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        classifier, state, num, num_stalled = carry
        value, grad = value_and_grad(classifier, state=state)
        change, state = solver.update(grad, state, classifier, value=value, grad=grad, value_fn=objective)
        num_stalled += optax.tree.get(state, "value") >= value
        return optax.apply_updates(classifier, change), state, num + 1, num_stalled

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        _, state, num, num_stalled = carry
        steepest = optax.tree.norm(optax.tree.get(state, "grad"), ord=jnp.inf)
        is_at_work = (num < _MOST_UPDATES) & (num_stalled < _MOST_STALLED)
        return (num == 0) | (is_at_work & (steepest > _LARGEST_GRADIENT))

    classifier, *_ = jax.lax.while_loop(goes_on, update, (start, solver.init(start), 0, 0))
    return classifier


def _objective(train: Features, scale: Scale, weight_TxB: jax.Array, strength: float) -> Callable[..., jax.Array]:
    """The function that `fit` minimises. Its gradient comes from the same pass over the examples as its value."""

    def with_gradient(classifier: Classifier) -> tuple[jax.Array, Classifier]:
        total = on_shards(_loss_of_shard, classifier, scale, train, weight_TxB, out_specs=REPLICATED)
        loss, gradient = jax.tree.map(lambda x: x / jnp.sum(weight_TxB), total)
        kernel_DxK = classifier.kernel
        slope_DxK = gradient.kernel + strength * kernel_DxK
        return loss + strength / 2 * jnp.sum(kernel_DxK**2), Classifier(slope_DxK, gradient.bias)

    @jax.custom_vjp
    def objective(classifier: Classifier) -> jax.Array:
        return with_gradient(classifier)[0]

    def backward(gradient: Classifier, factor: jax.Array) -> tuple[Classifier]:
        return (jax.tree.map(lambda x: factor * x, gradient),)

    objective.defvjp(with_gradient, backward)
    return objective


def _loss_of_shard(
    classifier: Classifier, scale: Scale, train: Features, weight_TxB: jax.Array
) -> tuple[jax.Array, Classifier]:
    """The weighted sum of the losses of all examples, and its gradient; B of them on each device at a time."""

    def add(total: tuple[jax.Array, Classifier], block: tuple[Features, jax.Array]) -> tuple[Any, None]:
        (feature_BxD, label_B, _), weight_B = block
        x_BxD = (feature_BxD - scale.mean[None]) / scale.std[None]
        log_share_BxK = jax.nn.log_softmax(_logits(classifier, x_BxD))
        target_BxK = jax.nn.one_hot(label_B, log_share_BxK.shape[1])
        error_BxK = (jnp.exp(log_share_BxK) - target_BxK) * weight_B[:, None]
        loss = -jnp.sum(jnp.where(target_BxK > 0, log_share_BxK, 0.0) * weight_B[:, None])
        slope_DxK = jnp.einsum("bd,bk->dk", x_BxD, error_BxK, precision=jax.lax.Precision.HIGHEST)
        return jax.tree.map(jnp.add, total, (loss, Classifier(slope_DxK, jnp.sum(error_BxK, axis=0)))), None

    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, classifier))
    total, _ = jax.lax.scan(add, zero, (train, weight_TxB))
    return jax.lax.psum(total, BATCH)


def _logits(classifier: Classifier, x_BxD: jax.Array) -> jax.Array:
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("bd,dk->bk", x_BxD, classifier.kernel, precision=highest) + classifier.bias[None]


def _guesses_of_shard(classifier: Classifier, scale: Scale, features: Features) -> dict[str, jax.Array]:
    """The columns of `Guesses`, each T x B."""

    def guess(block: Features) -> dict[str, jax.Array]:
        feature_BxD, label_B, mask_B = block
        x_BxD = (feature_BxD - scale.mean[None]) / scale.std[None]
        log_share_BxK = jax.nn.log_softmax(_logits(classifier, x_BxD))
        return {
            "label": jnp.where(mask_B > 0, label_B, UNREADABLE),
            "guess": jnp.argmax(log_share_BxK, axis=1).astype(jnp.int32),
            "loss": -jnp.take_along_axis(log_share_BxK, label_B[:, None], axis=1)[:, 0],
            "confidence": jnp.exp(jnp.max(log_share_BxK, axis=1)),
        }

    return jax.lax.map(guess, features)


@jax.jit
def num_right(classifier: Classifier, scale: Scale, features: Features, weight_TxB: jax.Array) -> jax.Array:
    """The sum of the weights of the examples that are classified correctly."""
    found = on_shards(_guesses_of_shard, classifier, scale, features, out_specs=SHARDED)
    return jnp.sum(jnp.where(found["guess"] == features.label, weight_TxB, 0.0))


@jax.jit
def guesses(classifier: Classifier, scale: Scale, features: Features) -> dict[str, jax.Array]:
    """The columns of `Guesses` for all examples, replicated."""
    found = on_shards(_guesses_of_shard, classifier, scale, features, out_specs=SHARDED)
    return {name: jax.sharding.reshard(x, REPLICATED).reshape(-1) for name, x in found.items()}


@partial(jax.jit, static_argnums=(0, 1))
def zeros(num_features: int, num_classes: int) -> Classifier:
    """The classifier whose logits are all 0."""
    return Classifier(jnp.zeros((num_features, num_classes)), jnp.zeros(num_classes))
