"""The recipes of a file or folder, and tables of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from gnp_scale import recipe
from gnp_scale.catalogue.docstrings import parse
from gnp_scale.config import ConfigError

COLUMNS = ("recipe", "what it is", "data", "batch", "hardware", "result", "run")
_INTRODUCTION = """\
# Recipes

`gnp-scale train configs/FILE.py:RECIPE` trains one. Results are those of the papers unless the last column says what
has been run here; the docstring of a recipe names its sources. This page is written by
`gnp-scale recipes --format markdown > configs/README.md`.
"""


@dataclass(frozen=True)
class Entry:
    """One row of the catalogue."""

    file: str
    function: str
    cells: tuple[str, ...]
    """The texts of `COLUMNS` after the name; empty ones if the docstring has another form."""

    @property
    def name(self) -> str:
        """What `gnp-scale train` takes."""
        return f"{self.file}:{self.function}"


def find(path: Path, shown: Path) -> list[Entry]:
    """The recipes of a file, or of the Python files of a folder; files whose names begin with `_` have none.

    Args:
        path: The file or folder.
        shown: How the names of the recipes call it.

    Raises:
        ConfigError: there is no such file or folder, or a file does not load.
    """
    if not path.exists():
        raise ConfigError(f"{shown} does not exist: give a recipe file, or a folder of them")
    if path.is_file():
        return _of_file(path, str(shown))
    files = [file for file in sorted(path.glob("*.py")) if not file.name.startswith("_")]
    return [entry for file in files for entry in _of_file(file, str(shown / file.name))]


def _of_file(file: Path, shown: str) -> list[Entry]:
    functions = recipe.functions(file)
    return [Entry(shown, name, _cells(file, name, function.__doc__)) for name, function in functions.items()]


def _cells(file: Path, name: str, docstring: str | None) -> tuple[str, ...]:
    """A recipe that fails has its error in the place of what it is."""
    first = (docstring or "").strip().partition("\n")[0]
    try:
        data = recipe.load(f"{file}:{name}").data.name
    except ConfigError as error:
        return (str(error), *[""] * 5)
    try:
        description = parse(docstring)
    except ConfigError:
        return (first, data, *[""] * 4)
    fields = description.fields
    return (description.what, data, *(fields[field] for field in ("Batch", "Hardware", "Result", "Run")))


def as_table(entries: Sequence[Entry]) -> Table:
    """For a terminal: the cells are wrapped to its width."""
    table = Table(*COLUMNS)
    for entry in entries:
        table.add_row(entry.name, *entry.cells)
    table.columns[0].overflow = "fold"
    return table


def as_lines(entries: Sequence[Entry]) -> list[str]:
    """For a pipe: one line for each recipe, whose cells are separated by tabs."""
    return ["\t".join((entry.name, *entry.cells)) for entry in entries]


def as_markdown(entries: Sequence[Entry]) -> str:
    """A page with a table for each file."""
    parts = [_INTRODUCTION]
    for file in dict.fromkeys(entry.file for entry in entries):
        rows = [(f"`{entry.function}`", *entry.cells) for entry in entries if entry.file == file]
        lines = [f"## {file}", "", _row(COLUMNS), _row(["---"] * len(COLUMNS)), *map(_row, rows)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"
