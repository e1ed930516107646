"""From `file.py:function` and flags to a `Config`, and from a `Config` to JSON and back."""

import contextlib
import dataclasses
import difflib
import importlib.util
import io
import json
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from gnp_scale.config import Config, ConfigError


def load(name: str) -> Config:
    """The configuration that the function named `file.py:function` returns.

    A path that does not exist here is looked up beside this package, where an installed one has its `configs/`.

    Raises:
        ConfigError: there is no such file or function, or it does not return a `Config`.
    """
    path, _, function_name = name.partition(":")
    if not function_name:
        raise ConfigError(f"recipe {name!r} names no function: write it as file.py:function")
    file = next((file for file in (Path(path), Path(__file__).parent / path) if file.is_file()), None)
    if file is None:
        raise ConfigError(f"recipe file {path!r} does not exist: give the path of a Python file")
    found = functions(file)
    if function_name not in found:
        hint = _closest(function_name, found)
        raise ConfigError(f"{path} has no function {function_name!r}: {hint}it has {', '.join(found)}")
    try:
        config = found[function_name]()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"recipe {name} fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, Config):
        raise ConfigError(f"recipe {name} returned a {type(config).__name__}: it must return a gnp_scale.config.Config")
    return config


def functions(file: Path) -> dict[str, Callable[[], Any]]:
    """The recipes of a file: its own functions, without those whose names begin with an underscore.

    Raises:
        ConfigError: the file is not Python, or fails to load.
    """
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"recipe file {file} is not Python: give a file whose name ends in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"recipe file {file} fails to load: {type(error).__name__}: {error}") from error
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, types.FunctionType) and value.__module__ == module.__name__ and not name.startswith("_")
    }


def override(config: Config, flags: Sequence[str], prog: str = "gnp-scale train FILE:FUNCTION") -> Config:
    """`config` with values replaced by flags such as `--gnp.alpha 0.6`; `--help` prints them all and exits.

    Raises:
        ConfigError: a flag is misspelt, or its value is of the wrong type, out of range, or fits the rest badly.
    """
    known = {f"--{key}".replace("_", "-") for key in flatten(config)}
    for flag in (flag.partition("=")[0] for flag in flags):
        if flag.startswith("--") and flag != "--help" and _canonical(flag) not in known:
            raise ConfigError(f"there is no option {flag}: {_closest(_canonical(flag), known)}--help lists them all")
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(Config, default=config, args=list(flags), prog=prog)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise ConfigError(_first_paragraph(messages.getvalue())) from None


def _canonical(flag: str) -> str:
    return flag.replace("_", "-").replace(".no-", ".")


def _closest(word: str, candidates: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.5)
    return f"did you mean {close[0]}? " if close else ""


def _first_paragraph(box: str) -> str:
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    body = lines[1 : next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))]
    return re.sub(r"^Error parsing (?!--)\w+: ", "", " ".join(body)) or " ".join(box.split())


def flatten(config: Config) -> dict[str, Any]:
    """The configuration as one dictionary with keys such as `gnp.alpha`."""
    sections = dataclasses.asdict(config)
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def summary(config: Config) -> str:
    """The configuration for a person: a line for each section."""
    sections = dataclasses.asdict(config).items()
    return "\n".join(f"  {name}: {', '.join(f'{k} {v}' for k, v in values.items())}" for name, values in sections)


def to_json(config: Config) -> str:
    """The configuration as JSON, one object a section."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The configuration that `to_json` wrote.

    Raises:
        ConfigError: the text is not JSON, or its keys are not those of this version.
    """
    try:
        sections = json.loads(text)
        config = Config(**{name: _section(name, values) for name, values in sections.items()})
        missing = set(flatten(config)) - {f"{name}.{key}" for name, values in sections.items() for key in values}
        if missing:
            raise ConfigError(f"it has no {', '.join(sorted(missing))}")
        return config
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"a stored configuration does not fit this version of gnp_scale: {error}") from error


def _section(name: str, values: dict[str, Any]) -> Any:
    section = typing.get_type_hints(Config).get(name)
    if section is None:
        raise ConfigError(f"there is no section {name!r}")
    return section(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
