"""What `gnp-scale sharpness` measures, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from gnp_scale.checks import closest
from gnp_scale.config import check

MEASURES = ("rise", "spectrum", "plane", "corruptions", "rounding", "trajectory")
DEFAULT_MEASURES = MEASURES[:-1]
"""Of one network. A trajectory needs several checkpoints."""

_USED_BY = {
    "radii": ("--radii", ["rise"]),
    "group_size": ("--group", ["rise"]),
    "num_eigenvalues": ("--eigenvalues", ["spectrum"]),
    "num_lanczos_steps": ("--lanczos-steps", ["spectrum"]),
    "num_vectors": ("--vectors", ["spectrum"]),
    "grid_size": ("--grid", ["plane", "trajectory"]),
}
"""The option of a field that not all parts use, and the parts that do."""
_SMALLEST_RADIUS, _LARGEST_RADIUS = 1e-30, 1e30
"""Numbers of float32."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how.

    Raises:
        ConfigError: a value is out of range.
    """

    measures: Sequence[str] = DEFAULT_MEASURES
    num_examples: int = 1024
    """Training examples of the loss."""
    radii: Sequence[float] = (0.01, 0.05, 0.1)
    """Of the ascent."""
    group_size: int = 32
    """Examples of a group of m-sharpness."""
    num_eigenvalues: int = 5
    num_lanczos_steps: int = 20
    """Products with the Hessian for the eigenvalues."""
    num_vectors: int = 32
    """Products with the Hessian for the trace."""
    grid_size: int = 11
    """Steps along each direction of a plane."""
    seed: int = 0
    """Of the examples, directions, vectors and corruptions."""

    def __post_init__(self) -> None:
        for name in self.measures:
            check(
                name in MEASURES,
                f"--measure has {name!r}: {closest(name, MEASURES)}choose some of {','.join(MEASURES)}",
            )
        for name, (option, parts) in _USED_BY.items():
            check(
                bool({*parts} & {*self.measures}) or getattr(self, name) == getattr(Settings, name),
                f"{option} has no effect, because {' or '.join(parts)} is not measured: leave it out, or add "
                f"{parts[0]} to --measure",
            )
        names = [f"{radius:g}" for radius in self.radii]
        given = f"--radii is {','.join(names)}"
        check(
            len(self.radii) > 0 and all(_SMALLEST_RADIUS <= radius <= _LARGEST_RADIUS for radius in self.radii),
            f"{given}: give numbers above 0, such as 0.01,0.05",
        )
        check(len(set(names)) == len(names), f"{given}: give each radius once, with six digits")
        check(
            self.num_eigenvalues <= self.num_lanczos_steps,
            f"--eigenvalues is {self.num_eigenvalues} and --lanczos-steps {self.num_lanczos_steps}: each step finds at "
            "most one, so make --lanczos-steps larger, several times as large for exact values",
        )
