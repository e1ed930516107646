"""The docstring of a recipe: what it is, and seven fields (CONTRIBUTING.md has an example)."""

import inspect
import re
from dataclasses import dataclass

from gnp_scale.config import ConfigError, check

FIELDS = ("Paper", "Command", "Hardware", "Batch", "Result", "Hours", "Run")
_FIELD = re.compile(r"(?P<name>[A-Z][a-z]+): *(?P<text>.*)")


@dataclass(frozen=True)
class Description:
    """What the docstring of a recipe says, each text in one line."""

    what: str
    fields: dict[str, str]
    """The texts of `FIELDS`, by name and in this order."""


def parse(docstring: str | None) -> Description:
    """The parts of a recipe's docstring.

    The first paragraph says what the recipe is. The second one has each of `FIELDS`, in this order. A field begins a
    line with `Name: ` and may go on in the next lines.

    Raises:
        ConfigError: a field is missing, misspelt, empty, or in another place; or there are other paragraphs.
    """
    paragraphs = [paragraph.splitlines() for paragraph in inspect.cleandoc(docstring or "").split("\n\n")]
    check(
        len(paragraphs) == 2,
        f"the docstring has {len(paragraphs)} paragraphs: give one that says what the recipe is, and one of fields",
    )
    what, lines = paragraphs
    fields: dict[str, str] = {}
    for line in lines:
        match = _FIELD.match(line)
        if match:
            _check_next(match["name"], list(fields))
            fields[match["name"]] = match["text"]
        elif fields:
            fields[list(fields)[-1]] += f" {line.strip()}"
        else:
            raise ConfigError(f"the fields of a docstring begin with {line!r}: begin with Paper:")
    missing = [name for name in FIELDS if not fields.get(name, "").strip()]
    check(not missing, f"the docstring lacks {', '.join(missing)}: write each as `Name: text`")
    return Description(" ".join(line.strip() for line in what), {name: text.strip() for name, text in fields.items()})


def _check_next(name: str, before: list[str]) -> None:
    """Raises ConfigError unless the field `name` may follow the fields `before`."""
    expected = FIELDS[len(before)] if len(before) < len(FIELDS) else "nothing"
    check(name == expected, f"a docstring has the field {name} where {expected} belongs: write {', '.join(FIELDS)}")
