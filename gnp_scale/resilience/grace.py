"""The grace time: for how long a process lives on after a signal."""

import os

from gnp_scale.config import ConfigError

VARIABLE = "GNP_SCALE_GRACE_S"
"""Environment variable: seconds from a signal until the scheduler kills. Set by launch scripts, as they ask for it."""

DEFAULT_S = 30.0
"""What Slurm (`KillWait`), Kubernetes and preemptible machines of clouds give by default."""

USED = 0.9
"""Share of the grace time after which a process leaves whatever it is doing; the rest is for leaving."""


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
