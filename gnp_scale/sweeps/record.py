"""The folder of a sweep: `sweep.json`, which says what its points are, and the names of its files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError, check
from gnp_scale.run.files import replace_file, wait_for_lock
from gnp_scale.run.layout import SWEEP_FILE
from gnp_scale.run.run_dir import changes, stored_config
from gnp_scale.sweeps.grid import Values, flags_of, name_of, with_values

LOGS_FOLDER = "logs"
_LOCK_FILE = "sweep.lock"


@dataclass(frozen=True)
class Sweep:
    """What belongs to a folder: a recipe with its flags, and all points that were asked for."""

    recipe: str
    flags: tuple[str, ...]
    """Of `gnp-scale train`, for all points."""
    config: Config
    """Of the first point; the others differ from it in their values alone."""
    points: Mapping[str, Values]
    """The values of each point, by its name."""

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that vary."""
        return tuple(next(iter(self.points.values())))

    def config_of(self, name: str) -> Config:
        """The configuration of a point."""
        return with_values(self.config, self.points[name])

    def arguments(self, name: str, folder: Path) -> list[str]:
        """What follows `gnp-scale train` for a point of the sweep in `folder`."""
        return [self.recipe, *self.flags, *flags_of(self.points[name]), "--run-dir", str(folder / name)]


def keep(folder: Path, sweep: Sweep) -> tuple[Sweep, list[str]]:
    """Makes `folder` that of `sweep`, or adds its points to those of the sweep that is there.

    Returns:
        sweep: with all points, in the order in which they were first asked for.
        names: of the points that are asked for now.

    Raises:
        ConfigError: the folder belongs to another sweep, or cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Two processes may extend the sweep at the same time.
        with (folder / _LOCK_FILE).open("a") as lock:
            wait_for_lock(lock.fileno())
            stored = read(folder)
            if stored is not None:
                sweep = _reordered(folder, stored, sweep)
            names = list(sweep.points)
            if stored is not None:
                sweep = replace(sweep, config=stored.config, points={**stored.points, **sweep.points})
            if sweep != stored:
                _check_points(folder, sweep)
                replace_file(folder / SWEEP_FILE, _to_json(sweep))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be a sweep folder ({error}): choose another --sweep-dir") from error
    return sweep, names


def _check_points(folder: Path, sweep: Sweep) -> None:
    """Raises ConfigError if a point is impossible, with which the sweep could not be read again."""
    try:
        for name in sweep.points:
            sweep.config_of(name)
    except ConfigError as error:
        raise ConfigError(f"{folder} began with other settings ({error}): choose another --sweep-dir") from error


def check_same(folder: Path, sweep: Sweep) -> None:
    """Raises ConfigError if `folder` holds another sweep than `sweep`, or a damaged one."""
    stored = read(folder)
    if stored is not None:
        _reordered(folder, stored, sweep)


def check_runs(folder: Path, sweep: Sweep) -> None:
    """Raises ConfigError if the folder of a point of the sweep in `folder` holds a run with other settings."""
    for name in sweep.points:
        try:
            changed = changes(stored_config(folder / name), sweep.config_of(name))
        except ConfigError:
            # There is none, or it tells by itself what is wrong with its folder.
            continue
        check(
            not changed,
            f"{folder / name} holds another run than that point of the sweep ({', '.join(changed)}): move it away, or "
            "choose another --sweep-dir",
        )


def read(folder: Path) -> Sweep | None:
    """The sweep in `folder`; None if there is none.

    Raises: ConfigError: its record is damaged.
    """
    path = folder / SWEEP_FILE
    try:
        stored = json.loads(path.read_bytes())
        points = {name: _values(values) for name, values in stored["points"].items()}
        config = recipe.from_json(json.dumps(stored["config"]))
        for values in points.values():
            with_values(config, values)
        if not points:
            raise ValueError("it has no points")
        return Sweep(stored["recipe"], tuple(stored["flags"]), config, points)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore it, or choose another --sweep-dir") from error


def _to_json(sweep: Sweep) -> bytes:
    fields = {
        "recipe": sweep.recipe,
        "flags": sweep.flags,
        "points": sweep.points,
        "config": json.loads(recipe.to_json(sweep.config)),
    }
    return json.dumps(fields, indent=2).encode() + b"\n"


def _values(values: Mapping[str, Any]) -> Values:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def _reordered(folder: Path, stored: Sweep, sweep: Sweep) -> Sweep:
    """`sweep`, with the keys of its points in the order of `stored`, whose values without the grid it must have."""
    keys = stored.keys
    check(
        set(sweep.keys) == set(keys),
        f"the sweep in {folder} varies {', '.join(keys)}, not {', '.join(sweep.keys)}: choose another --sweep-dir",
    )
    changed = [text for text in changes(stored.config, sweep.config) if text.partition(" ")[0] not in keys]
    if changed:
        raise ConfigError(
            f"{folder} holds a sweep of another recipe ({', '.join(changed)}): choose another --sweep-dir"
        )
    points = [{key: point[key] for key in keys} for point in sweep.points.values()]
    return replace(sweep, points={name_of(point): point for point in points})
