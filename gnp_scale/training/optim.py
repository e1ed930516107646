"""The base optimizer: one optax chain, its learning rate, and the mask of its weight decay."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gnp_scale.config import OptimConfig
from gnp_scale.training import rules
from gnp_scale.training.custom import of_function
from gnp_scale.training.leaves import Params, frozen_mask, frozen_statistics, overlaid, trained, unless

LARS_TRUST_COEFFICIENT = 0.001  # arXiv 1708.03888, section 5


def learning_rate(config: OptimConfig, num_steps: int) -> optax.Schedule:
    """The learning rate as a function of the step, a number or an array of steps.

    It rises linearly from 0 at step 0 to `config.learning_rate` at step `config.warmup_steps`. Then `config.schedule`

    * `constant` keeps it;
    * `cosine` (arXiv 1608.03983, equation 5) and `linear` bring it to `config.end_learning_rate` at step `num_steps`;
    * `step` multiplies it by `config.step_factor` at each of `config.step_boundaries`, fractions of `num_steps`.
    """
    peak, end, num_warmup_steps = config.learning_rate, config.end_learning_rate, config.warmup_steps

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        warmup = jnp.minimum(step / num_warmup_steps, 1.0) if num_warmup_steps else 1.0
        share = _share_of_peak(config, num_steps, jnp.asarray(step))
        return warmup * (share * peak + (1.0 - share) * end)

    return schedule


def _share_of_peak(config: OptimConfig, num_steps: int, step: jax.Array) -> jax.Array:
    # Remaining steps, not past steps: n / n may differ from 1 under XLA, but 0 / n is 0, so the end value is exact.
    remaining = jnp.clip((num_steps - step) / max(num_steps - config.warmup_steps, 1), 0.0, 1.0)
    match config.schedule:
        case "constant":
            return jnp.ones_like(remaining)
        case "cosine":
            return 0.5 * (1.0 - jnp.cos(jnp.pi * remaining))
        case "linear":
            return remaining
        case "step":
            share = jnp.ones_like(remaining)
            for fraction in config.step_boundaries:
                share = jnp.where(step >= round(fraction * num_steps), config.step_factor * share, share)
            return share


def num_updates(opt_state: optax.OptState) -> jax.Array:
    """Number of updates by the optimizer, without skipped steps; the learning rate depends on it."""
    (_, count), *_ = optax.tree.get_all_with_path(opt_state, "count")
    return count


def average_share(decay: float, num_updates: jax.Array) -> jax.Array:
    """Weight of the newest parameters in their moving average, after `num_updates` earlier updates; float32.

    1 - min(decay, (1 + n) / (10 + n)): the average covers about the last tenth of the updates, until `decay` limits it.
    So even with a decay of 0.9999 the initial parameters do not dominate a short run. `ExponentialMovingAverage` of
    TensorFlow does the same with `num_updates`.
    """
    return jnp.maximum(1 - decay, 9 / (10 + num_updates)).astype(jnp.float32)


def decay_mask(params: Params, config: OptimConfig) -> Any:
    """Pytree of bool: which parameters weight decay and `l2_in_loss` act on.

    These are the leaves named `kernel`, or all leaves with `config.decay_norm_and_bias`, without frozen ones. Biases,
    scales of norm layers, position embeddings and class tokens are recognised by name, not by rank: a stack of scanned
    blocks has biases of rank 2.
    """
    return jax.tree.map(
        lambda is_kernel, is_frozen: (is_kernel or config.decay_norm_and_bias) and not is_frozen,
        is_kernel(params),
        frozen_mask(params, config),
    )


def is_kernel(params: Params) -> Any:
    """Pytree of bool: which parameters are kernels."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)


def freeze(params: Params, config: OptimConfig) -> Params:
    """The same parameters, of which the frozen ones have no gradient.

    So they are not perturbed, do not enter the norms of gradients, and get updates of 0 from each optimizer.
    """
    if not config.frozen:
        return params
    return jax.tree.map(
        lambda w, is_frozen: jax.lax.stop_gradient(w) if is_frozen else w, params, frozen_mask(params, config)
    )


def with_frozen(new: tuple[Params, Any], old: tuple[Params, Any], config: OptimConfig) -> tuple[Params, Any]:
    """The parameters and batch statistics `new`, but the frozen ones of `old`, without the rounding of an average."""
    if not config.frozen:
        return new
    return unless((frozen_mask(old[0], config), frozen_statistics(old[1], config)), new, old)


def make_optimizer(config: OptimConfig, num_steps: int) -> optax.GradientTransformation:
    """The optimizer of `config`: clipping of units (`agc`) and by the global norm, then one of

    * `sgd`: m = momentum * m + g, and the step is m, or g + momentum * m with `nesterov` (the form of PyTorch);
    * `adamw`: arXiv 1711.05101, algorithm 2;
    * `lamb`: arXiv 1904.00962, algorithm 2, phi(x) = x;
    * `lars`: arXiv 1708.03888, algorithm 1, with heavy-ball momentum after the learning rate. Its trust ratio divides
      by ||g + decay * w||, as in optax; the paper has the bound ||g|| + decay * ||w||;
    * `lion`: arXiv 2302.06675, algorithm 2;
    * `adafactor`: `rules.adafactor`;
    * `muon`: `rules.muon`;
    * `custom`: what `config.function` returns, which has its own weight decay.

    Weight decay is decoupled, times the learning rate (in `lars` it is inside the trust ratio and the momentum), and
    acts on `decay_mask`. Only kernels have a trust ratio, as is usual in `lamb` and `lars`; for other parameters it is
    1. `layer_decay` multiplies the whole step of a parameter.

    Moments are created with the shardings of the parameters, and the norms are over all shards. Frozen parameters have
    none.
    """
    # Options that are off add nothing, because each part of a chain has a place in the state that is saved.
    agc = () if config.agc is None else (rules.adaptive_clipping(config.agc),)
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    dtype = rules.moment_dtype(config)
    adam = optax.scale_by_adam(config.b1, config.b2, config.eps, mu_dtype=dtype)
    # Frozen parameters do not come so far.
    decay = optax.add_decayed_weights(config.weight_decay, partial(decay_mask, config=replace(config, frozen=())))
    lamb_trust = optax.masked(optax.scale_by_trust_ratio(), is_kernel)
    lars_trust = optax.masked(optax.scale_by_trust_ratio(trust_coefficient=LARS_TRUST_COEFFICIENT), is_kernel)
    schedule = learning_rate(config, num_steps)
    rate = optax.scale_by_learning_rate(schedule)
    chains = {
        "sgd": (optax.trace(config.momentum, config.nesterov, dtype), decay, rate),
        "adamw": (adam, decay, rate),
        "lamb": (adam, decay, lamb_trust, rate),
        "lars": (decay, lars_trust, rate, optax.trace(config.momentum, accumulator_dtype=dtype)),
        "lion": (optax.scale_by_lion(config.b1, config.b2, dtype), decay, rate),
        "adafactor": (rules.adafactor(config), decay, rate),
        "muon": (rules.muon(config), decay, rate),
        "custom": () if config.function is None else (_count_updates(), of_function(config.function, schedule)),
    }
    layers = () if config.layer_decay == 1 else (rules.by_layer(config.layer_decay),)
    chain = (*agc, clip, *chains[config.name])
    return optax.chain(*((_of_trained(optax.chain(*chain), config),) if config.frozen else chain), *layers)


def _of_trained(inner: optax.GradientTransformation, config: OptimConfig) -> optax.GradientTransformation:
    """`inner` for the trained parameters alone; the updates of frozen ones are 0."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        found, state = inner.update(trained(updates, config), state, trained(params, config))
        return overlaid(jax.tree.map(jnp.zeros_like, updates), found), state

    return optax.GradientTransformation(lambda params: inner.init(trained(params, config)), update)


def moment(opt_state: optax.OptState, name: str, params: Params) -> Params:
    """The moment `name` of all parameters, which is 0 for frozen ones."""
    return overlaid(jax.tree.map(jnp.zeros_like, params), optax.tree.get(opt_state, name))


def _count_updates() -> optax.GradientTransformation:
    """Leaves the gradient as it is, and keeps the count that `num_updates` finds first."""
    return optax.scale_by_schedule(lambda _: 1.0)
