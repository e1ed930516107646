"""Where the records of a data set lie that is kept in files and tar files."""

import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from gnp_scale.data.formats import DamagedFileError


class Entry(NamedTuple):
    """Where a record lies: `file` is relative to the folder of the data set, `name` is for people."""

    file: str
    offset: int
    num_bytes: int
    label: int
    name: str


type Listing = tuple[Sequence[str], Mapping[str, list[Entry]]]
"""Names of the classes, and the entries of each split."""


def whole_file(folder: Path, path: Path, label: int) -> Entry:
    """The file `path` in `folder`, which is one record.

    Raises:
        DamagedFileError: it is not there, or is no file.
    """
    name = str(path.relative_to(folder))
    try:
        status = path.stat()
    except OSError as error:
        raise DamagedFileError(f"{path} is listed but cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFileError(f"{path} is listed but is no file: correct the list, or get the data set again")
    return Entry(name, 0, status.st_size, label, name)


def check_inside(source: object, names: Iterable[str]) -> None:
    """Refuses names of files in `source`, a list or an index, that lead out of the folder of the data set.

    Raises:
        DamagedFileError: there is one.
    """
    for name in names:
        if name.startswith("/") or (".." in name and ".." in name.split("/")):
            raise DamagedFileError(f"{source} names {name}, which is outside of the data set: get the data set again")
