"""Which runs a table needs, and the configuration of each.

First each method is tuned: for each point of its grid, a run for each tuning seed. Then the method is trained at the
chosen point on fresh seeds. All methods have equally many runs of both kinds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gnp_scale import recipe
from gnp_scale.config import Config, check
from gnp_scale.evidence.methods import Method, Point
from gnp_scale.evidence.tables import Table
from gnp_scale.gnp import StepKind
from gnp_scale.sweeps.grid import name_of, with_values
from gnp_scale.training.penalty import make_gnp

FIRST_TUNING_SEED = 1000
"""Tuning seeds follow this one; those of the final runs follow 0."""
TUNING, FINAL = "tune,", "final,"
"""How the names of the folders of runs begin."""
_FREE_FLAGS = ("--data.root", "--data.num-threads", "--data.prefetch-steps", "--mesh.", "--train.kernels")
"""Flags that say where a run computes. The others belong to the table."""


@dataclass(frozen=True)
class Run:
    """One run of a method."""

    method: str
    is_final: bool
    point: Point
    seed: int

    @property
    def name(self) -> str:
        """Its folder in that of the method."""
        return (FINAL if self.is_final else TUNING) + name_of(dict(self.point) | {"seed": self.seed})


@dataclass(frozen=True)
class Plan:
    """A table, with the numbers of seeds and steps; `flags` hold for all runs."""

    table: Table
    num_seeds: int
    num_tuning_seeds: int
    num_steps: int
    flags: tuple[str, ...] = ()

    def configs(self) -> Mapping[str, Config]:
        """The configuration of each method, before it is tuned.

        Raises:
            ConfigError: a flag does not belong here, or is wrong; or there are too few steps for a method.
        """
        for flag in self.flags:
            is_free = not flag.startswith("--") or flag.replace("_", "-").startswith(_FREE_FLAGS)
            check(is_free, f"{flag} would change the table: only {', '.join(_FREE_FLAGS)} may be given")
        configs = {name: self._config(method) for name, method in self.table.methods.items()}
        for config in configs.values():
            make_gnp(config)
        return configs

    def _config(self, method: Method) -> Config:
        base = self.table.config(method.step_factor * self.num_steps)
        flags = method.flags.format(warmup_steps=base.optim.warmup_steps).split()
        return recipe.override(base, [*self.flags, *flags], "gnp-scale bench generalization TABLE")

    def points(self, name: str) -> list[Point]:
        """The points that are tried for the method `name`."""
        return self.table.methods[name].points(self.table.config(self.num_steps).optim)

    def tuning(self, name: str) -> list[Run]:
        """The runs that tune the method `name`."""
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.num_tuning_seeds)
        return [Run(name, False, point, seed) for point in self.points(name) for seed in seeds]

    def final(self, name: str, point: Point) -> list[Run]:
        """The runs of the method `name` at the chosen point."""
        return [Run(name, True, point, seed) for seed in range(self.num_seeds)]


def config_of(run: Run, config: Config) -> Config:
    """The configuration of `run`, whose method has `config`: another seed also draws other examples and noise."""
    config = with_values(config, dict(run.point) | {"train.seed": run.seed})
    data = config.data
    return replace(config, data=replace(data, draw_seed=run.seed)) if data.draws else config


def num_passes(config: Config) -> float:
    """Forward and backward passes over a batch in a run of `config`."""
    gnp = make_gnp(config)
    kinds, counts = np.unique(gnp.step_kinds(np.arange(config.train.num_steps)), return_counts=True)
    return float(sum(count * gnp.num_passes(StepKind(kind)) for kind, count in zip(kinds, counts, strict=True)))


def folder_of(folder: Path, run: Run) -> Path:
    """The run folder of `run` in the benchmark in `folder`."""
    return folder / run.method / run.name


def checked_names(asked: Sequence[str], table: Table) -> list[str]:
    """The methods that are asked for, in the order of the table; all if none is.

    Raises:
        ConfigError: there is no such method.
    """
    for name in asked:
        check(name in table.methods, f"there is no method {name} in this table: it has {', '.join(table.methods)}")
    return [name for name in table.methods if not asked or name in asked]
