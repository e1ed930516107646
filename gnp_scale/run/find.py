"""Finds the runs that a command names: their own folders, or folders of runs or of a sweep."""

import json
from collections.abc import Sequence

from gnp_scale.config import ConfigError
from gnp_scale.run.layout import CONFIG_FILE, SWEEP_FILE
from gnp_scale.run.status import unreadable_is_config_error
from gnp_scale.run.store import Folder, StorePath, why_no_run


def find_runs(folders: Sequence[Folder], *, is_strict: bool = True) -> dict[str, tuple[Folder, bool]]:
    """The runs that `folders` are or hold, each once by its name, and whether it was named itself.

    Points of a sweep that have not been started are among them; and if not `is_strict`, folders that hold no run.

    Raises: ConfigError: one of the folders is no run and holds none.
    """
    found: dict[str, tuple[Folder, bool]] = {}
    for folder in folders:
        with unreadable_is_config_error(folder):
            is_own = is_run(folder)
            inner = {} if is_own else {str(folder / name): (folder / name, False) for name in _names_in(folder)}
            if is_strict and not inner and not is_own:
                raise ConfigError(
                    f"{folder} holds no run ({why_no_run(folder)}), and no folders of runs: give the folder of a run, "
                    "or one of runs"
                )
        found |= inner or {str(folder): (folder, True)}
    return found


def is_run(folder: Folder) -> bool:
    """Whether a run has been started in `folder`. One that nobody may look into counts, so that it is named."""
    try:
        return (folder / CONFIG_FILE).exists()
    except PermissionError:
        return True


def _names_in(folder: Folder) -> list[str]:
    """The folders of runs in `folder`: of a sweep, those of its points."""
    points = _points(folder / SWEEP_FILE)
    return points or runs_in(folder)


def runs_in(folder: Folder) -> list[str]:
    """The names of the folders in `folder` that are those of runs."""
    if isinstance(folder, StorePath):
        names = [name.rstrip("/") for name in folder.names() if name.endswith("/")]
    else:
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [name for name in names if is_run(folder / name)]


def _points(path: Folder) -> list[str]:
    try:
        points = json.loads(path.read_text())["points"]
        if not isinstance(points, dict):
            raise ValueError("its points are not an object")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged ({error}): restore it from a copy, or name the runs") from error
    return list(points)
