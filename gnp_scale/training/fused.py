"""Blend, clip, decay, moments and parameter step in one pass: which configurations have it, on the state of optax."""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import optax
from gnp_kernels import AdamW, Implementation, Sgd
from gnp_kernels.dispatch import platform

from gnp_scale.config import Config, OptimConfig, check
from gnp_scale.gnp import Blend, sharded_ops
from gnp_scale.training import optim

type Tree = Any

_KERNELS_OF: dict[str, Implementation] = {"tpu": "pallas", "gpu": "triton"}


def implementation(config: Config) -> Implementation:
    """What `train.kernels` stands for on the devices of the current mesh; "reference" is plain JAX and optax's chain.

    Raises:
        ConfigError: kernels were asked for by name that do not fit the configuration or the machine.
    """
    kernels, here = config.train.kernels, platform()
    refusal = _refusal(config)
    if kernels == "auto":
        found = _KERNELS_OF.get(here, "reference")
        return found if refusal is None and (found != "triton" or _has_jax_triton()) else "reference"
    if kernels == "xla":
        return "reference"
    fits = "use auto or xla, or change that"
    check(refusal is None, f"train.kernels {kernels} cannot do {refusal}: {fits}")
    check(_KERNELS_OF.get(here) == kernels, f"train.kernels is {kernels}, which does not run on {here}: {fits}")
    check(kernels != "triton" or _has_jax_triton(), "train.kernels triton needs jax-triton: pip install jax-triton")
    return kernels


def _refusal(config: Config) -> str | None:
    if update_rule(config.optim) is None:
        return f"the update of optim.name {config.optim.name}"
    return 'gnp.blend "decoupled"' if config.gnp.blend == "decoupled" else None


def _has_jax_triton() -> bool:
    return importlib.util.find_spec("jax_triton") is not None


def update_rule(config: OptimConfig) -> Sgd | AdamW | None:
    """The optimizer as kernels know it; None where they do not."""
    match config.name:
        case "sgd":
            return Sgd(config.momentum, config.nesterov, config.weight_decay)
        case "adamw":
            return AdamW(config.b1, config.b2, config.eps, config.weight_decay)
        case _:
            return None


def fused_update(
    config: Config,
    implementation: Implementation,
    params: Tree,
    opt_state: Any,
    blend: Blend,
    blend_norm: jax.Array,
    applies: jax.Array,
    copy_dtype: jax.typing.DTypeLike | None,
) -> tuple[Tree, Any, Tree, dict[str, jax.Array]]:
    """One step of the chain of `optim.make_optimizer` with the gradient `blend`, of norm `blend_norm`.

    Returns:
        (params, opt_state, copy of params in `copy_dtype` or None, norms of the update and of the new parameters);
        where `applies` is False, parameters and state are bitwise as they were.
    """
    rule = update_rule(config.optim)
    assert rule is not None, config.optim.name
    names = ("trace",) if isinstance(rule, Sgd) else ("mu", "nu")
    names = names[: rule.num_moments]
    count = optim.num_updates(opt_state)
    rate = optim.learning_rate(config.optim, config.train.num_steps)
    clip = _clip_factor(blend_norm, config.optim.clip_norm)
    new = sharded_ops.blend_update(
        params,
        blend.g1,
        blend.g2,
        tuple(optax.tree.get(opt_state, name) for name in names),
        {
            "c1": clip * blend.c1,
            "c2": clip * blend.c2,
            "learning_rate": rate(count),
            "count": count,
            "applies": applies,
        },
        rule=rule,
        decay_mask=optim.decay_mask(params, config.optim),
        copy_dtype=copy_dtype,
        implementation=implementation,
    )
    opt_state = optax.tree.set(opt_state, count=count + applies, **dict(zip(names, new.moments, strict=True)))
    norms = {
        "optim/update_norm": jnp.sqrt(new.update_squared_norm),
        "optim/param_norm": jnp.sqrt(new.params_squared_norm),
    }
    return new.params, opt_state, new.copy, norms


def _clip_factor(norm: jax.Array, max_norm: float | None) -> Any:
    return 1.0 if max_norm is None else jnp.where(norm < max_norm, 1.0, max_norm / norm)
