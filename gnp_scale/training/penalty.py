"""The penalty that a configuration describes, as a `Gnp`."""

import numpy as np
import optax

from gnp_scale import gnp
from gnp_scale.config import Config, ConfigError, GnpConfig, check
from gnp_scale.config.gnp import PenaltySchedule
from gnp_scale.gnp import Gnp
from gnp_scale.gnp.gates import Gate
from gnp_scale.gnp.settings import Schedule
from gnp_scale.training import optim

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
        f'gnp.direction "momentum" needs an optimizer with momentum: optim.name is {config.optim.name} with '
        f"optim.momentum {config.optim.momentum}; choose sgd with momentum, or one of {', '.join(list(MOMENTUM)[1:])}",
    )
    try:
        penalty = Gnp(
            r=_scheduled(config, section.r, section.r_schedule),
            alpha=None if section.alpha is None else _scheduled(config, section.alpha, section.alpha_schedule),
            lam=None if section.lam is None else _scheduled(config, section.lam, section.alpha_schedule),
            blend=section.blend,
            direction=section.direction,
            reuse_every=section.reuse_every,
            metric=section.metric,
            mask=_MASKS[section.perturbed],
            perturb_groups=section.perturb_groups,
            ascent_fraction=section.ascent_fraction,
            gate=_gate(section, config),
        )
        penalty.check(np.arange(config.train.num_steps))
    except ValueError as error:
        raise ConfigError(f"settings of the section gnp are incompatible: {error}") from error
    return penalty


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


def _gate(section: GnpConfig, config: Config) -> Gate | None:
    match section.gate:
        case "always":
            return None
        case "every":
            return gnp.every(section.gate_every)
        case "window":
            return gnp.window(
                section.gate_start, config.train.num_steps if section.gate_stop is None else section.gate_stop
            )
        case "bernoulli":
            return gnp.bernoulli(section.gate_probability, config.train.seed)
