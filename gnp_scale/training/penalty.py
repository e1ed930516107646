"""The penalty that a configuration describes, as a `Gnp`."""

import math

import jax.numpy as jnp
import numpy as np
import optax

from gnp_scale import gnp
from gnp_scale.config import Config, ConfigError, GnpConfig, check
from gnp_scale.config.gnp import PenaltySchedule
from gnp_scale.gnp import Gnp, NormGate, Schedule
from gnp_scale.gnp.choices import Mask, at
from gnp_scale.gnp.gates import Gate
from gnp_scale.training import optim
from gnp_scale.training.leaves import is_frozen, layer_axes

# The name of the momentum in each optimizer's state. That of `lars` is in units of updates, with the opposite sign.
MOMENTUM = {"sgd": "trace", "adamw": "mu", "lamb": "mu", "lion": "mu"}

_MASKS = {
    "all": None,
    "norm": lambda path: any(name.startswith("norm") for name in path.split("/")),
    "kernels": lambda path: path.endswith("/kernel"),
}


def make_gnp(config: Config) -> Gnp:
    """The penalty of `config`, with its schedules and gate as functions of the step.

    Raises:
        ConfigError: settings are incompatible, at least at one step of the run.
    """
    section = config.gnp
    keeps_momentum = config.optim.name in MOMENTUM and (config.optim.name != "sgd" or config.optim.momentum > 0)
    check(
        section.direction != "momentum" or keeps_momentum,
        f'gnp.direction "momentum" needs a momentum of all gradients: optim.name is {config.optim.name} with '
        f"optim.momentum {config.optim.momentum}; choose sgd with momentum, or one of {', '.join(list(MOMENTUM)[1:])}",
    )
    try:
        penalty = Gnp(
            r=_ramped(config, _radius(config)),
            alpha=None if section.alpha is None else _scheduled(config, section.alpha, section.alpha_schedule),
            lam=None if section.lam is None else _scheduled(config, section.lam, section.alpha_schedule),
            blend=section.blend,
            direction=section.direction,
            reuse_every=section.reuse_every,
            gradient_weight=section.gradient_weight,
            average_weight=section.average_weight,
            average_decay=section.average_decay,
            metric=section.metric,
            axes=layer_axes,
            radius=section.radius,
            max_r=math.inf if section.max_r is None else section.max_r,
            mask=_mask(config),
            perturb_groups=section.perturb_groups,
            ascent_fraction=section.ascent_fraction,
            gate=_gate(section, config),
            norm_gate=_norm_gate(section, config),
        )
        penalty.check(np.arange(config.train.num_steps))
    except ValueError as error:
        raise ConfigError(f"settings of the section gnp are incompatible: {error}") from error
    return penalty


def warm_up_advice(config: Config) -> str | None:
    """What to set if the warm-up of r or alpha is over when the penalty begins, or None."""
    section = config.gnp
    if section.gate not in ("window", "tail", "decay") or not section.warmup_steps:
        return None
    start = _window(section, config)[0]
    if section.warmup_steps > start:
        return None
    return (
        f"without effect: the warm-up of gnp.warmup_steps {section.warmup_steps}, which counts from step 0; the gate "
        f"{section.gate} opens after step {start}, and --gnp.gate-ramp-steps makes r grow from there"
    )


def _mask(config: Config) -> Mask | None:
    """The trained parameters among those of `gnp.perturbed`. A frozen one has no gradient, so it would not move, but
    a penalty of frozen parameters alone would be none without saying so.
    """
    chosen, patterns = _MASKS[config.gnp.perturbed], config.optim.frozen
    if chosen is None or not patterns:
        return chosen
    return lambda path: chosen(path) and not is_frozen(path, patterns)


def _radius(config: Config) -> float | Schedule:
    section, rate_config = config.gnp, config.optim
    if section.end_r is None or not section.r:
        return _scheduled(config, section.r, section.r_schedule)
    end_r, low, high = section.end_r, rate_config.end_learning_rate, rate_config.learning_rate
    check(
        low < high,
        f"gnp.end_r is {end_r}, but the learning rate does not fall: optim.end_learning_rate is {low} and "
        f"optim.learning_rate {high}; lower the first, or leave gnp.end_r out",
    )
    rate = optim.learning_rate(rate_config, config.train.num_steps)
    return lambda step: end_r + (section.r - end_r) * jnp.clip((rate(step) - low) / (high - low), 0.0, 1.0)


def _scheduled(config: Config, value: float, schedule: PenaltySchedule) -> float | Schedule:
    if not value:
        return value
    match schedule:
        case "constant":
            return value
        case "warmup":
            return optax.linear_schedule(0.0, value, config.gnp.warmup_steps)
        case "cosine":
            return optax.cosine_decay_schedule(value, config.train.num_steps)
        case "learning_rate":
            rate = optim.learning_rate(config.optim, config.train.num_steps)
            return lambda step: value * rate(step) / config.optim.learning_rate


def _ramped(config: Config, r: float | Schedule) -> float | Schedule:
    """r, which grows from 0 over `gnp.gate_ramp_steps` steps after the gate opens."""
    num_steps = config.gnp.gate_ramp_steps
    if not num_steps:
        return r
    start = _window(config.gnp, config)[0]
    # Skipped steps are no updates, so the count may be below `start`: the first penalised step has some of r anyway.
    return lambda step: at(r, step) * jnp.clip((jnp.asarray(step) + 1 - start) / num_steps, 1 / num_steps, 1.0)


def _gate(section: GnpConfig, config: Config) -> Gate | None:
    match section.gate:
        case "always" | "norm":
            return None
        case "every":
            return gnp.every(section.gate_every)
        case "window" | "tail" | "decay":
            return gnp.window(*_window(section, config))
        case "bernoulli":
            return gnp.bernoulli(section.gate_probability, config.train.seed)


def _window(section: GnpConfig, config: Config) -> tuple[int, int]:
    """(first, last + 1) of the steps with the penalty."""
    num_steps = config.train.num_steps
    match section.gate:
        case "tail":
            return num_steps - max(1, round(section.gate_tail * num_steps)), num_steps
        case "decay":
            return _start_of_decay(config), num_steps
    return section.gate_start, num_steps if section.gate_stop is None else section.gate_stop


def _start_of_decay(config: Config) -> int:
    """The last step with the highest learning rate."""
    rate = np.asarray(optim.learning_rate(config.optim, config.train.num_steps)(np.arange(config.train.num_steps)))
    start = int(np.flatnonzero(rate == rate.max())[-1])
    check(
        rate[-1] < rate.max(),
        f"gnp.gate is decay, but optim.schedule {config.optim.schedule} ends with the highest learning rate: choose a "
        "schedule that falls, or the gate tail",
    )
    return start


def _norm_gate(section: GnpConfig, config: Config) -> NormGate | None:
    if section.gate != "norm":
        return None
    threshold = optax.linear_schedule(section.gate_threshold, section.gate_end_threshold, config.train.num_steps)
    return NormGate(threshold, section.gate_decay)
