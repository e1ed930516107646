"""Writes the table and the plot of a comparison."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from gnp_scale.config import ConfigError, check
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import SWEEP_FILE
from gnp_scale.run.streams import say
from gnp_scale.sweeps.chart import png
from gnp_scale.sweeps.plot import plot
from gnp_scale.sweeps.results import Result
from gnp_scale.sweeps.table import OPENING, make_rows, table

TABLE_FILE, PLOT_FILE = "table.md", "plot.png"


def write(results: Sequence[Result], keys: Iterable[str], folder: Path | None) -> str:
    """Writes the table and the plot of the results, grouped by their values of `keys`, into `folder` if it is given.

    Returns:
        table (text).

    Raises:
        ConfigError: the folder cannot be written, or has such files of somebody else.
    """
    rows = make_rows(results, keys)
    text = table(rows)
    if folder is None:
        return text
    picture = plot(rows)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _check_own(folder)
        replace_file(folder / TABLE_FILE, text.encode())
        if picture is None:
            (folder / PLOT_FILE).unlink(missing_ok=True)
        else:
            replace_file(folder / PLOT_FILE, png(picture))
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}): choose another folder") from error
    say(f"written: {folder / TABLE_FILE}" + ("" if picture is None else f", {folder / PLOT_FILE}"))
    return text


def _check_own(folder: Path) -> None:
    """Raises ConfigError if `folder` has a table or a plot, but is neither that of a sweep nor of a comparison."""
    table_path = folder / TABLE_FILE
    if (folder / SWEEP_FILE).exists() or (table_path.exists() and OPENING in table_path.read_text(errors="replace")):
        return
    for path in (table_path, folder / PLOT_FILE):
        check(not path.exists(), f"{path} is not of a comparison: move it away, or choose another folder")
