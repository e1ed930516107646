"""The update of parameters and optimizer state from u: an optax chain, or one fused pass over the same state."""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from gnp_kernels import AdamW, Implementation, Sgd, Updated
from gnp_kernels.dispatch import platform

from gnp_scale.config import Config, OptimConfig, check
from gnp_scale.gnp import Penalized, sharded_ops
from gnp_scale.training import optim
from gnp_scale.training.leaves import frozen, layer_factors, overlaid, trained
from gnp_scale.training.state import copy_dtype, copy_of

type Tree = Any


class Update(NamedTuple):
    """The result of an update; if it does not apply, parameters and state are bitwise unchanged."""

    params: Tree
    opt_state: Any
    copy: Tree
    """The new parameters in the type in which gradients are taken; None if it is their own type."""
    norms: dict[str, jax.Array]
    """`optim/update_norm`, and `optim/param_norm` of the new parameters."""


type UpdateFn = Callable[[Tree, Any, Penalized, jax.Array], Update]
"""`update(params, opt_state, result, applies)`; `applies` is a bool scalar."""

_KERNELS_OF: dict[str, Implementation] = {"tpu": "pallas", "gpu": "triton"}


def implementation(config: Config) -> Implementation:
    """The implementation that `train.kernels` selects on the current mesh; "xla" is plain JAX and optax's chain.

    Raises: ConfigError: kernels named explicitly do not support the configuration or the machine.
    """
    kernels, here = config.train.kernels, platform()
    refusal = _refusal(config)
    if kernels == "auto":
        found = _KERNELS_OF.get(here, "xla")
        return found if refusal is None and (found != "triton" or _has_jax_triton()) else "xla"
    if kernels == "xla":
        return kernels
    fits = "use auto or xla, or change that"
    check(refusal is None, f"train.kernels {kernels} cannot do {refusal}: {fits}")
    check(_KERNELS_OF.get(here) == kernels, f"train.kernels is {kernels}, which does not run on {here}: {fits}")
    check(kernels != "triton" or _has_jax_triton(), "train.kernels triton needs jax-triton: pip install jax-triton")
    return kernels


def _refusal(config: Config) -> str | None:
    """What of the configuration kernels do not compute; None if they compute all of it."""
    optim_config = config.optim
    if update_rule(optim_config) is None:
        return f"the update of optim.name {optim_config.name}"
    for name in ("moment_dtype", "agc", "layer_decay"):
        value = getattr(optim_config, name)
        if value != getattr(OptimConfig, name):
            return f"optim.{name} {value}"
    if config.gnp.metric == "layerwise":
        return 'gnp.metric "layerwise"'
    return 'gnp.blend "decoupled"' if config.gnp.blend == "decoupled" else None


def _has_jax_triton() -> bool:
    return importlib.util.find_spec("jax_triton") is not None


def update_rule(config: OptimConfig) -> Sgd | AdamW | None:
    """The optimizer as a rule of the kernels; None if they do not support it."""
    match config.name:
        case "sgd":
            return Sgd(config.momentum, config.nesterov, config.weight_decay)
        case "adamw":
            return AdamW(config.b1, config.b2, config.eps, config.weight_decay)
        case _:
            return None


def make_update(config: Config, optimizer: optax.GradientTransformation, implementation: Implementation) -> UpdateFn:
    """The update by `optimizer` from `optim.make_optimizer`; kernels do all of it in one pass."""
    if implementation == "xla":
        return make_optax_update(config, optimizer)
    return make_fused_update(config, implementation)


def make_optax_update(config: Config, optimizer: optax.GradientTransformation) -> UpdateFn:
    """One step of the chain, and the displacement for the blend "decoupled"."""
    rate = optim.learning_rate(config.optim, config.train.num_steps)

    @jax.named_scope("gnp_update")
    def update(params: Tree, opt_state: Any, result: Penalized, applies: jax.Array) -> Update:
        change, new_state = optimizer.update(result.grad.like(params), opt_state, params)
        if result.displacement is not None:
            learning_rate = rate(optim.num_updates(opt_state))
            displacement = _by_layer(result.displacement, config.optim.layer_decay)
            change = jax.tree.map(lambda c, d: c - learning_rate * d, change, displacement)
        new_params = optax.apply_updates(params, change)
        params, opt_state = select(applies, (new_params, new_state), (params, opt_state))
        norms = {
            "optim/update_norm": jnp.where(applies, optax.tree.norm(change), 0.0),
            "optim/param_norm": optax.tree.norm(params),
        }
        return Update(params, opt_state, copy_of(params, copy_dtype(config.train)), norms)

    return update


def _by_layer(displacement: Tree, decay: float) -> Tree:
    """The displacement, times the same factors as the learning rates of the parameters."""
    if decay == 1:
        return displacement
    return jax.tree.map(lambda d, factor: factor * d, displacement, layer_factors(displacement, decay))


def make_fused_update(config: Config, implementation: Implementation) -> UpdateFn:
    """One step of the same chain in one pass: u is added up, clipped and applied while it is read."""
    rule = update_rule(config.optim)
    assert rule is not None, config.optim.name
    names = (("trace",) if isinstance(rule, Sgd) else ("mu", "nu"))[: rule.num_moments]
    rate = optim.learning_rate(config.optim, config.train.num_steps)

    @jax.named_scope("gnp_update")
    def update(params: Tree, opt_state: Any, result: Penalized, applies: jax.Array) -> Update:
        u, count = result.grad, optim.num_updates(opt_state)
        clip = _clip_factor(result.telemetry["update_grad_norm"], config.optim.clip_norm)
        of_trained = partial(trained, config=config.optim)
        new = sharded_ops.blend_update(
            of_trained(params),
            of_trained(u.g1),
            None if u.g2 is None else of_trained(u.g2),
            tuple(optax.tree.get(opt_state, name) for name in names),
            {
                "c1": clip * u.c1,
                "c2": clip * u.c2,
                "learning_rate": rate(count),
                "count": count,
                "applies": applies,
            },
            rule=rule,
            decay_mask=of_trained(optim.decay_mask(params, config.optim)),
            copy_dtype=copy_dtype(config.train),
            implementation=implementation,
        )
        moments = dict(zip(names, new.moments, strict=True))
        opt_state = optax.tree.set(opt_state, count=count + applies, **moments)
        return _whole(new, params, opt_state, config)

    return update


def _whole(new: Updated, params: Tree, opt_state: Any, config: Config) -> Update:
    """The update of all parameters from that of the trained ones."""
    copy = copy_of(params, copy_dtype(config.train))
    squared_norm = new.params_squared_norm + optax.tree.norm(frozen(params, config.optim), squared=True)
    norms = {
        "optim/update_norm": jnp.sqrt(new.update_squared_norm),
        "optim/param_norm": jnp.sqrt(squared_norm),
    }
    return Update(overlaid(params, new.params), opt_state, copy and overlaid(copy, new.copy), norms)


def select(is_new: jax.Array, new: Tree, old: Tree) -> Tree:
    """One tree or the other. It costs no extra pass over memory: the operation that makes a new leaf reads the old one
    anyway.
    """
    return jax.tree.map(partial(jnp.where, is_new), new, old)


def _clip_factor(norm: jax.Array, max_norm: float | None) -> Any:
    return 1.0 if max_norm is None else jnp.where(norm < max_norm, 1.0, max_norm / norm)
