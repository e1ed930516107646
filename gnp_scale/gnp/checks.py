"""Which values of `Gnp`, and which of them together, are refused."""

from typing import Any, get_args

import numpy as np

from gnp_scale.gnp.choices import BlendName, Direction, Metric, Radius, is_number

LARGEST_ALPHA = 1 + 1e-6
"""For blends that do not extrapolate; above 1, because rounding may bring lam / r above 1."""


def check_values(gnp: Any) -> None:
    """Raises ValueError for a setting that is out of range."""
    if (gnp.alpha is None) == (gnp.lam is None):
        raise ValueError(
            "The strength of the penalty is either alpha or lam = alpha * r. "
            f"Got alpha={gnp.alpha} and lam={gnp.lam}. Give exactly one of them."
        )
    for name in ("r", "alpha", "lam"):
        value = getattr(gnp, name)
        if is_number(value) and not 0 <= value < float("inf"):
            raise ValueError(f"Gnp.{name} must be finite and not negative. Got {value}. Give a number >= 0.")
    names = {"blend": BlendName, "direction": Direction, "metric": Metric, "radius": Radius}
    for name, choices in names.items():
        if getattr(gnp, name) not in get_args(choices):
            raise ValueError(
                f"Gnp.{name} must be one of {get_args(choices)}. Got {getattr(gnp, name)!r}. Choose one of them."
            )
    for name in ("reuse_every", "perturb_groups"):
        value = getattr(gnp, name)
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"Gnp.{name} must be a whole number of at least 1. Got {value}. Give such a number.")
    if not 0.001 <= gnp.ascent_fraction <= 1:
        raise ValueError(f"Gnp.ascent_fraction must be in [0.001, 1]. Got {gnp.ascent_fraction}. Change it.")
    if not 0 <= gnp.average_decay < 1:
        raise ValueError(f"Gnp.average_decay must be in [0, 1). Got {gnp.average_decay}. Change it.")
    if gnp.norm_gate is not None and not 0 <= gnp.norm_gate.decay < 1:
        raise ValueError(f"NormGate.decay must be in [0, 1). Got {gnp.norm_gate.decay}. Change it.")
    for name in ("gradient_weight", "average_weight"):
        if not np.isfinite(getattr(gnp, name)):
            raise ValueError(f"Gnp.{name} must be finite. Got {getattr(gnp, name)}. Change it.")
    if not gnp.max_r > 0:
        raise ValueError(f"Gnp.max_r must be positive. Got {gnp.max_r}. Change it.")


def check_combinations(gnp: Any) -> None:
    """Raises ValueError for settings that exclude each other."""
    for (name, value), needs in _NEEDS.items():
        if getattr(gnp, name) == value:
            _check_needs(gnp, f'The {name} "{value}"', needs)
    if gnp.norm_gate is not None:
        _check_needs(gnp, "A norm_gate", _NEEDS_OF_NORM_GATE)
    if gnp.direction in ("momentum", "stale") and gnp.alpha != 1:
        raise ValueError(
            f'The direction "{gnp.direction}" has no g1 to blend with. '
            f"Got alpha={gnp.alpha}, lam={gnp.lam}. Give alpha=1."
        )
    if gnp.radius != "fixed" and gnp.lam is not None:
        raise ValueError(
            f'With the radius "{gnp.radius}" the length of eps depends on the gradient, and alpha is not lam / r. '
            f"Got lam={gnp.lam}. Give alpha."
        )
    _check_alpha(gnp)


_ONE_PERTURBATION = {"perturb_groups": (1,), "ascent_fraction": (1,)}
_OLD_DIRECTION = {"blend": ("paper",), **_ONE_PERTURBATION}
_NEEDS: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = {
    ("direction", "momentum"): _OLD_DIRECTION,
    ("direction", "reused"): _OLD_DIRECTION,
    ("direction", "stale"): _OLD_DIRECTION,
    ("radius", "loss"): {"direction": ("gradient", "reused")},
    ("metric", "layerwise"): {"radius": ("fixed",)},
}
"""What a choice needs: for each setting the values that go with it."""
_NEEDS_OF_NORM_GATE = {"direction": ("gradient",), "blend": ("paper", "unit_norm", "gsam"), **_ONE_PERTURBATION}


def _check_needs(gnp: Any, what: str, needs: dict[str, tuple[Any, ...]]) -> None:
    for name, allowed in needs.items():
        if getattr(gnp, name) not in allowed:
            fitting = " and ".join(f"{name}={' or '.join(map(repr, values))}" for name, values in needs.items())
            raise ValueError(f"{what} needs {fitting}. Got {name}={getattr(gnp, name)!r}. Change it, or the other.")


def _check_alpha(gnp: Any) -> None:
    alpha = gnp.values()[1] if is_number(gnp.r) and is_number(gnp.lam) else gnp.alpha
    of_lam = "" if gnp.lam is None else f" (lam={gnp.lam} / r={gnp.r})"
    if gnp.blend != "decoupled" and is_number(alpha) and alpha > LARGEST_ALPHA:
        raise ValueError(
            f'alpha may exceed 1 only with blend="decoupled". Got {alpha}{of_lam} with {gnp.blend!r}. '
            "Give alpha in [0, 1], or that blend."
        )
