"""What the settings of the method may be, besides numbers."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np

type Schedule = Callable[[Any], Any]
"""A function of the step (a scalar, or an array of steps elementwise), like the schedules of optax."""
type Mask = Callable[[str], bool]
"""A function of the path of a parameter, such as "blocks/00/mlp/in_proj/kernel"."""

BlendName = Literal["paper", "unit_norm", "gsam", "decoupled"]
Direction = Literal["gradient", "momentum", "reused", "stale", "friendly"]
Metric = Literal["euclidean", "adaptive", "layerwise"]
Radius = Literal["fixed", "loss", "gradient"]


class Axes(NamedTuple):
    """Axes of a parameter; those in neither are a batch of separate layers."""

    inputs: tuple[int, ...]
    """Axes over which a unit sums its inputs."""
    outputs: tuple[int, ...]


type AxesOf = Callable[[str, tuple[int, ...]], Axes]
"""A function of the path and the shape of a parameter."""


def last_axis_is_output(_: str, shape: tuple[int, ...]) -> Axes:
    """The axes of kernels whose last axis is that of outputs, and of vectors."""
    axes = tuple(range(len(shape)))
    return Axes(axes[:-1], axes[-1:])


class NormGate(NamedTuple):
    """A gate that the data decides: the penalty is on where ||g1||^2 >= mean + threshold * (standard deviation).

    Mean and deviation are moving averages over the steps so far, this one included (AE-SAM, arXiv 2304.14647).
    """

    threshold: float | Schedule
    """In the paper it falls from 1 to -1, so that the penalty becomes more frequent."""
    decay: float = 0.9
    """Of both averages."""

    def at(self, step: Any) -> Any:
        """The threshold at `step`."""
        return at(self.threshold, step)


def is_number(value: Any) -> bool:
    """Whether a setting is a number, known before anything is traced."""
    return isinstance(value, int | float | np.number)


def at(value: float | Schedule | None, step: Any) -> Any:
    """The value of a setting at `step`."""
    if not callable(value):
        return value
    if step is None:
        raise ValueError(
            "Schedules and gates are functions of the step. Gnp has one, but no step was given. "
            "Call the function with step=..., the number of updates so far."
        )
    return value(step)
