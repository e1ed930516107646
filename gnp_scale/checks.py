"""Checks of user input: their error, the values of a section of the configuration, and paths."""

import difflib
import errno
import functools
import os
import types
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LARGEST_INT = 2**32 - 1
"""Whole numbers of the user fit into 32 bits."""
_LARGEST_FLOAT = float.fromhex("0x1.fffffep127")  # of float32, in which steps are computed


class ConfigError(ValueError):
    """A mistake in the configuration: one line that says what was wrong, what was given and what to change."""


class PassingError(RuntimeError):
    """A device or a server does not answer now; one line says why, and a restart may help."""


def check(condition: bool, message: str) -> None:
    """Raises `ConfigError(message)` unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def check_values(name: str, section: Any) -> None:
    """Checks that every field of the dataclass `section`, called `name`, holds a value of its type.

    Numbers must be finite in float32, and whole numbers must fit into 32 bits: no field uses infinity, and None means
    "no limit".

    Raises:
        ConfigError: a field has another type.
    """
    for key, kind in _hints(type(section)).items():
        value = getattr(section, key)
        words = _misfit(value, kind)
        of_library = "; append .item() to this number of a library" if hasattr(value, "item") else ""
        check(words is None, f"{name}.{key} is {value!r}: it must be {words}{of_library}")


def changed_options(name: str, section: Any, keys: Iterable[str]) -> str:
    """The fields `keys` of the dataclass `section`, called `name`, that do not hold their defaults.

    They are words such as "data.image_size 64, data.crop_area 0.5"; empty if there are none.
    """
    values = ((key, getattr(section, key)) for key in keys)
    return ", ".join(f"{name}.{key} {value}" for key, value in values if value != getattr(type(section), key))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _misfit(value: Any, kind: Any) -> str | None:
    """If `value` does not have the type `kind`, what the field must be, in words."""
    arguments = typing.get_args(kind)
    match typing.get_origin(kind):
        case types.UnionType:
            others = [_misfit(value, other) for other in arguments]
            return None if None in others else " or ".join(word for word in others if word)
        case typing.Literal:
            return None if value in arguments else f"one of {', '.join(map(repr, arguments))}"
        case origin if origin is tuple:
            fits = isinstance(value, tuple) and all(_misfit(entry, arguments[0]) is None for entry in value)
            return None if fits else f"a tuple, with {_misfit(None, arguments[0])} in each place"
    fits, words = _PLAIN[kind]
    return None if fits(value) else words


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INT


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= _LARGEST_FLOAT


_PLAIN: dict[Any, tuple[Any, str]] = {
    int: (_is_whole, "a whole number of at most 32 bits"),
    float: (_is_number, "a finite number"),
    bool: (lambda value: isinstance(value, bool), "True or False"),
    str: (lambda value: isinstance(value, str), "a string"),
    types.NoneType: (lambda value: value is None, "None"),
}


def local_path(option: str, text: str) -> Path:
    """The local path that was given as `option`, with `~` expanded; there may be nothing.

    Raises: ConfigError: it is empty, a URL, in the home of an unknown user, or not UTF-8: Orbax cannot write there. Or
        the system refuses to look at it.
    """
    path = _path_of(option, text)
    try:
        path.stat()
    except OSError as error:
        is_answered = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
        check(is_answered, f"{option} is {text}, which cannot be used ({error.strerror}): give another path")
    return path


def _path_of(option: str, text: str) -> Path:
    is_text = not any("\ud800" <= character <= "\udfff" for character in text)
    check(is_text, f"{option} is {text!a}, which is not UTF-8: rename it, or set LC_ALL=C.UTF-8 if it was to be")
    check(text != "", f"{option} is empty: give a path (a shell variable that is not set leaves an empty one)")
    check(
        "://" not in text,
        f"{option} is {text}: object stores and URLs are not supported; mount the bucket as a folder (for example "
        "with gcsfuse or mountpoint-s3) and give that",
    )
    expanded = os.path.expanduser(text)
    check(not expanded.startswith("~"), f"{option} is {text}: there is no such home folder; give the whole path")
    return Path(expanded)


def data_root(option: str, text: str) -> str:
    """The folder of data sets that was given as `option`: a local path, or a folder of a bucket on gs:// or s3://.

    Raises: ConfigError: it is neither.
    """
    scheme, separator, bucket = text.partition("://")
    if not separator or scheme not in ("gs", "s3"):
        return str(_path_of(option, text))
    check(bucket.strip("/") != "", f"{option} is {text}, which names no bucket: write it as {scheme}://bucket/folder")
    return text.rstrip("/")


def split_recipe(name: str, what: str = "recipe") -> tuple[str, str]:
    """(path, function) of `what` that is named `file.py:function`, at the last colon.

    Raises:
        ConfigError: it names no function.
    """
    path, _, function = name.rpartition(":")
    check(path != "" and function.isidentifier(), f"{what} {name!r} names no function: write it as file.py:function")
    return path, function


def closest(word: str, candidates: Iterable[str]) -> str:
    """A hint at the candidate that is most similar to `word`; empty if none is similar."""
    close = difflib.get_close_matches(word, list(candidates), n=1, cutoff=0.6)
    return f"did you mean {close[0]}? " if close else ""
