"""The points of a grid: `--grid gnp.r=0.05,0.1` to values, flags and names."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError, check

type Values = Mapping[str, Any]
"""The values of a point, by keys such as `gnp.r`."""

_KEPT = "._+-"
_OTHER_FLAGS = ("--grid", "--sweep-dir", "--jobs", "--report", "--slurm", "--sbatch", "--kernels")
"""Of `gnp-scale sweep`, which a misspelt flag may have meant."""
_LONGEST_NAME = 200
"""Characters; file systems allow 255 bytes, and a log has a longer name."""


def parse_axis(text: str) -> tuple[str, list[str]]:
    """(key, values) of an axis `key=value,value`; `-` and `_` are the same in a key.

    Raises:
        ConfigError: a part is missing, or a value is there twice.
    """
    key, _, rest = text.partition("=")
    values = [value.strip() for value in rest.split(",")]
    check("." in key and "" not in values, f"--grid {text!r} is no axis: write it as --grid gnp.r=0.05,0.1")
    check(len(set(values)) == len(values), f"--grid {text} has a value twice: leave one out")
    return key.removeprefix("--").replace("-", "_"), values


def make_points(base: Config, flags: Sequence[str], axes: Sequence[str]) -> dict[str, tuple[Values, Config]]:
    """The values and the configuration of each point of the grid, by the name of the point.

    Args:
        base: the recipe.
        flags: of `gnp-scale train`, for all points.
        axes: such as `gnp.r=0.05,0.1`; the last one varies fastest.

    Raises:
        ConfigError: an axis, a flag or the configuration of a point is wrong.
    """
    parsed = [parse_axis(text) for text in axes]
    keys = [key for key, _ in parsed]
    check(bool(keys), "a sweep needs an axis: add one, such as --grid gnp.r=0.05,0.1")
    check(len(set(keys)) == len(keys), f"--grid has an axis twice ({', '.join(keys)}): put all of its values into one")
    _check_free(flags, keys)
    points: dict[str, tuple[Values, Config]] = {}
    for texts in itertools.product(*(values for _, values in parsed)):
        config = _override(base, flags, dict(zip(keys, texts, strict=True)))
        values = {key: recipe.flatten(config)[key] for key in keys}
        name = name_of(values)
        check(name not in points, f"--grid has the point {name} twice: leave one of its values out")
        points[name] = values, config
    return points


def _override(base: Config, flags: Sequence[str], texts: Mapping[str, str]) -> Config:
    known = recipe.flatten(base)
    values = {key: _read(key, text, known) for key, text in texts.items()}
    return recipe.override(base, [*flags, *flags_of(values)], others=_OTHER_FLAGS)


def _read(key: str, text: str, known: Values) -> Any:
    """A value as `flags_of` takes it; numbers and words remain text, which the parser of the flags reads."""
    match known.get(key):
        case bool():
            check(text in ("true", "false"), f"--grid {key} has the value {text}: give true or false")
            return text == "true"
        case tuple():
            return tuple(text.split())
        case str():
            return text
    return None if text.lower() == "none" else text


def _check_free(flags: Sequence[str], keys: Sequence[str]) -> None:
    for flag in flags:
        key = flag.partition("=")[0].removeprefix("--").replace("-", "_").replace(".no_", ".")
        if flag.startswith("--") and key in keys:
            raise ConfigError(f"{flag} is also an axis of the grid: leave one of the two out")


def flags_of(values: Values) -> list[str]:
    """The flags of `gnp-scale train` for the values of a point."""
    flags = []
    for key, value in values.items():
        flag = f"--{key.replace('_', '-')}"
        match value:
            case True | False:
                flags.append(flag if value else flag.replace(".", ".no-", 1))
            case tuple():
                flags += [flag, *map(str, value)]
            case _:
                flags += [flag, str(value)]
    return flags


def name_of(values: Values) -> str:
    """The name of a point, which is a safe name of a folder, such as `gnp.r=0.05,train.seed=1`.

    Characters other than letters, digits and `._+-` are `~` and the two hexadecimal digits of each of their bytes.

    Raises:
        ConfigError: it is too long.
    """
    name = ",".join(f"{key}={_safe(text_of(value))}" for key, value in values.items())
    length = len(name)
    check(length <= _LONGEST_NAME, f"the name {name[:40]}... of a point has {length} characters: vary fewer options")
    return name


def text_of(value: Any) -> str:
    """A value of the configuration as a word in names and tables."""
    match value:
        case True | False | None:
            return str(value).lower()
        case tuple():
            return " ".join(map(str, value))
        case float():
            return repr(value)
    return str(value)


def _safe(text: str) -> str:
    is_kept = [character in _KEPT or (character.isascii() and character.isalnum()) for character in text]
    return "".join(
        character if kept else "".join(f"~{byte:02x}" for byte in character.encode())
        for character, kept in zip(text, is_kept, strict=True)
    )


def with_values(config: Config, values: Values) -> Config:
    """`config` with other values, by key, all of them at once: some may be possible only together.

    Raises:
        ConfigError: together they are impossible.
    """
    sections: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, field = key.partition(".")
        sections.setdefault(section, {})[field] = value
    return dataclasses.replace(
        config,
        **{name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()},
    )
