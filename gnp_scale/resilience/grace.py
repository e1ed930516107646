"""The grace time: how long a process may run after a signal."""

import os

from gnp_scale.config import ConfigError

VARIABLE = "GNP_SCALE_GRACE_S"
"""Environment variable: seconds from a signal until the scheduler kills. Launch scripts set it to what they request."""

DEFAULT_S = 30.0
"""The default of Slurm (`KillWait`), Kubernetes and preemptible machines of clouds."""

USED = 0.9
"""Fraction of the grace time after which a process exits, whatever it is doing; the rest is for the exit."""


def grace_s() -> float:
    """Seconds of grace.

    Raises:
        ConfigError: the environment variable is not a positive number.
    """
    text = os.environ.get(VARIABLE, str(DEFAULT_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{VARIABLE} is {text!r}: write the seconds from a signal until the kill, such as 30")
    return seconds
