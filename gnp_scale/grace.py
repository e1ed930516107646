"""The grace time: for how long a process lives on after a signal, and what fits into that."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Position:
    """Where a process stands when the run is asked to stop."""

    passed: int | None
    """The last step at which it went on; None where it does not train yet."""
    num_steps: int
    needed_s: float
    """From the end of that step until a save after the next one is committed, as measured so far."""
    left_s: float


@dataclass(frozen=True)
class Plan:
    """What all processes do, and why."""

    stop_at: int | None
    """The step to save after; None stands for leaving at once."""
    reason: str


def make_plan(positions: Sequence[Position]) -> Plan:
    """The same plan in every process: to stop after the first step that no process has passed, if a save then fits."""
    passed = [position.passed for position in positions if position.passed is not None]
    if len(passed) < len(positions):
        return Plan(None, "there is nothing new to save since the start")
    needed_s = max(position.needed_s for position in positions)
    left_s = min(position.left_s for position in positions)
    num_steps = positions[0].num_steps
    if max(passed) >= num_steps:
        return Plan(num_steps, "the last step is made, and is being saved")
    stop_at = max(passed) + 1
    times = f"is expected to take {needed_s:.1f} s of the {left_s:.1f} s left"
    if needed_s > left_s:
        return Plan(None, f"saving after step {stop_at} {times}: it does not fit")
    return Plan(stop_at, f"saving after step {stop_at} {times}")
