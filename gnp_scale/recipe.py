"""Turns `file.py:function` and flags into a `Config`, and a `Config` into JSON and back."""

import contextlib
import dataclasses
import importlib.util
import inspect
import io
import itertools
import json
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tyro

from gnp_scale.checks import closest, local_path, split_recipe
from gnp_scale.config import Config, ConfigError, earlier


def load(name: str) -> Config:
    """The configuration that the function named `file.py:function` returns.

    Raises:
        ConfigError: there is no such file or function, or it does not return a `Config`.
    """
    config = call(name, "recipe")
    if not isinstance(config, Config):
        raise ConfigError(f"recipe {name} returned a {type(config).__name__}: it must return a gnp_scale.config.Config")
    return config


def call(name: str, what: str, *arguments: Any) -> Any:
    """What the function named `file.py:function` returns; errors call it `what`.

    A path that does not exist is looked up in the folder that `shipped` returns.

    Raises:
        ConfigError: there is no such file or function, or it fails.
    """
    (path, function_name), found = split_recipe(name, what), functions(_file(name, what))
    if function_name not in found:
        hint = closest(function_name, found)
        raise ConfigError(f"{path} has no function {function_name!r}: {hint}it has {', '.join(found) or 'none'}")
    with running(name, what):
        return found[function_name](*arguments)


def running(name: str, what: str) -> contextlib.AbstractContextManager[None]:
    """Turns errors of the function `name`, and of what it returned, into a ConfigError of one line."""
    return _told(_file(name, what), f"{what} {name} fails")


def _file(name: str, what: str) -> Path:
    path, _ = split_recipe(name, what)
    given = local_path(f"the {what}", path)
    file = next((file for file in (given, shipped() / given) if file.is_file()), None)
    if file is None:
        raise ConfigError(f"{what} file {path!r} does not exist: give the path of a Python file")
    return file


def shipped() -> Path:
    """The folder that holds the `configs/` of this project: the package if it is installed, or the checkout."""
    package = Path(__file__).parent
    return package if (package / "configs").is_dir() else package.parent


def functions(file: Path) -> dict[str, Callable[[], Any]]:
    """The recipes of a file: its own functions, without those whose names begin with an underscore.

    The file may import other files of its folder; installed modules take precedence.

    Raises:
        ConfigError: the file is not Python, or fails to load.
    """
    file = file.resolve()
    # Not the bare file name: json.py must not replace the module json.
    spec = importlib.util.spec_from_file_location(f"recipe {file}", file)
    if spec is None or spec.loader is None:
        raise ConfigError(f"recipe file {file} is not Python: give a file whose name ends in .py")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up the module in which they are defined.
    sys.modules[module.__name__] = module
    with _told(file, f"recipe file {file} fails to load"):
        spec.loader.exec_module(module)
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(inspect.unwrap(value), types.FunctionType)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


@contextlib.contextmanager
def _told(file: Path, what: str) -> typing.Iterator[None]:
    """Turns any error of the recipe in `file` into one line that says where it happened."""
    try:
        yield
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file.resolve())]
        where = f" in line {frames[-1].lineno}" if frames else ""
        raise ConfigError(f"{what}{where}: {type(error).__name__}: {' '.join(str(error).split())}") from error


def override(
    config: Config,
    flags: Sequence[str],
    prog: str = "gnp-scale train FILE:FUNCTION",
    others: Sequence[str] = (),
    description: str | None = None,
) -> Config:
    """`config` with values replaced by flags such as `--gnp.alpha 0.6`.

    If a flag is given twice, the last one counts. `others` are options of the command that are parsed elsewhere.
    `--help` prints `description`, then all flags with the values of `config`, and exits.

    Raises:
        ConfigError: a flag is misspelt, or its value has the wrong type, is out of range, or conflicts with other
            values.
    """
    flags = earlier.flags(flags)
    _check_flags(config, flags, others)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            return tyro.cli(Config, default=config, args=list(flags), prog=prog, description=description)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        # tyro only prints its error messages. Its hook for them is private and may change in any release.
        raise ConfigError(_first_paragraph(messages.getvalue())) from None


def _check_flags(config: Config, flags: Sequence[str], others: Sequence[str]) -> None:
    values = {f"--{key}".replace("_", "-"): value for key, value in flatten(config).items()}
    for flag, after in itertools.pairwise([*flags, "--"]):
        name, equals, value = flag.partition("=")
        canonical = _canonical(name)
        if not name.startswith("--") or name == "--help":
            continue
        if canonical not in values:
            raise ConfigError(
                f"there is no option {name}: {closest(canonical.lower(), [*values, *others])}--help lists them all"
            )
        if "" in (value if equals else name, after):
            raise ConfigError(f"{name} is empty: give a value, or leave it out")
        if isinstance(values[canonical], bool) and (equals or not after.startswith("-")):
            off = canonical.replace(".", ".no-", 1)
            raise ConfigError(f"{name} takes no value: write {canonical}, or {off} for the opposite")


def _canonical(flag: str) -> str:
    return flag.replace("_", "-").replace(".no-", ".")


def _first_paragraph(box: str) -> str:
    lines = [line.strip("│ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()]
    body = lines[1 : next((i for i, line in enumerate(lines) if line.startswith("──")), len(lines))]
    text = re.sub(r"^Error parsing (?!--)\w+: ", "", " ".join(body)) or " ".join(box.split())
    return _no_number(text) or text


_NO_NUMBER = re.compile(
    r"Error parsing (?P<flag>--\S+): "
    r"(no type matching (?P<none>{None})\||could not convert string to |invalid literal for )"
    r"(?P<kind>int|float)\b.*?'(?P<value>[^']*)'.*",
    re.IGNORECASE,
)
"""What tyro says of a value that is no number, or neither a number nor None."""


def _no_number(text: str) -> str | None:
    if (found := _NO_NUMBER.fullmatch(text)) is None:
        return None
    number = "a whole number" if found["kind"].lower() == "int" else "a number"
    return f"{found['flag']} is {found['value']!r}: give {number}{' or None' if found['none'] else ''}"


def overview() -> str:
    """One line for each section of a configuration, which describes it."""
    sections = typing.get_type_hints(Config).items()
    return "\n".join(f"  {name:<12}{(section.__doc__ or '').partition('\n')[0]}" for name, section in sections)


def flatten(config: Config) -> dict[str, Any]:
    """The configuration as one dictionary with keys such as `gnp.alpha`."""
    sections = dataclasses.asdict(config)
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def summary(config: Config) -> str:
    """The configuration as text: a line for each section."""
    sections = dataclasses.asdict(config).items()
    return "\n".join(f"  {name}: {', '.join(f'{k} {v}' for k, v in values.items())}" for name, values in sections)


def to_json(config: Config) -> str:
    """The configuration as JSON, one object for each section."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str) -> Config:
    """The configuration that `to_json` of this or an earlier version wrote.

    A missing key is an option that was added later; its default keeps the old behaviour.

    Raises:
        ConfigError: the text is not JSON, or it has an option, or a value, that this version does not have.
    """
    try:
        sections = json.loads(text)
        return Config(**{name: _section(name, values) for name, values in sections.items()})
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"a stored configuration does not fit this version of gnp_scale: {error}") from error


def _section(name: str, values: dict[str, Any]) -> Any:
    section = typing.get_type_hints(Config).get(name)
    known = {field.name for field in dataclasses.fields(section)} if section else set()
    unknown = {f"{name}.{key} = {value!r}" for key, value in values.items() if key not in known}
    if section is None or unknown:
        raise ConfigError(
            f"it has {', '.join(sorted(unknown)) or name}, which this version does not know: use the version that made "
            "it, or start anew with another --run-dir"
        )
    values = earlier.section(name, values)
    return section(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})
