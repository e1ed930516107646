"""Options that had other values in earlier versions: what run folders and command lines say, in values of this one."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_STORED = {("model", "remat"): {False: "none", True: "block"}}
"""Values that a stored configuration may have, and those that replace them."""
_SWITCHES = {"--model.remat": ("--model.remat", "block"), "--model.no-remat": ("--model.remat", "none")}
"""Flags that took no value, and what they mean."""


def section(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the section `name` of a stored configuration."""
    return {key: _stored(_STORED.get((name, key), {}), value) for key, value in values.items()}


def _stored(replacements: Mapping[bool, Any], value: Any) -> Any:
    return replacements.get(value, value) if isinstance(value, bool) else value


def flags(given: Sequence[str]) -> list[str]:
    """The flags of a command line."""
    return [word for pair in itertools.pairwise([*given, "--"]) for word in _words(*pair)]


def _words(flag: str, after: str) -> Iterator[str]:
    yield from _SWITCHES[flag] if flag in _SWITCHES and after.startswith("--") else (flag,)
