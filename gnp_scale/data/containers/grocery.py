"""The Grocery Store photographs (arXiv 1901.00711): 81 classes, with lists of the images of each split."""

import csv
from pathlib import Path

from gnp_scale.data.containers.entries import Entry, Listing, check_inside, whole_file
from gnp_scale.data.containers.record import split_name
from gnp_scale.data.formats import DamagedFileError


def grocery_store(folder: Path) -> Listing | None:
    """What lies in `folder`; None if it has another form.

    Raises:
        OSError: a list cannot be read.
        DamagedFileError: a list has another form, or names an image that is not there, or outside.
    """
    if not (folder / "classes.csv").exists() or not (folder / "train.txt").exists():
        return None
    try:
        return _classes(folder / "classes.csv"), {
            split_name(name): _split(folder, name) for name in ("train", "val", "test")
        }
    except DamagedFileError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{folder} has lists of another form ({error}): get them again") from error


def _classes(file: Path) -> list[str]:
    with file.open(newline="") as lines:
        rows = sorted(csv.DictReader(lines), key=lambda row: int(row["Class ID (int)"]))
    return [row["Class Name (str)"] for row in rows]


def _split(folder: Path, name: str) -> list[Entry]:
    file = folder / f"{name}.txt"
    lines = file.read_text().splitlines()
    cells = [[cell.strip() for cell in line.split(",")] for line in lines if line.strip()]
    check_inside(file, (path for path, _, _ in cells))
    return [whole_file(folder, folder / path, int(label)) for path, label, _ in cells]
