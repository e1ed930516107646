"""Opens a data set in whatever form it is kept."""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from gnp_scale.config import ConfigError
from gnp_scale.data.containers import byte_ranges
from gnp_scale.data.containers.entries import Entry, Listing
from gnp_scale.data.containers.listings import FORMS
from gnp_scale.data.containers.parquet import open_parquet
from gnp_scale.data.containers.record import Contents
from gnp_scale.data.containers.tfds import INFO_FILE, is_tfds, open_tfds
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.data.manifest import JOURNAL_FILE
from gnp_scale.data.progress import progress_of
from gnp_scale.run.environment import user_cache
from gnp_scale.run.store import Folder, StorePath, run_folder
from gnp_scale.run.store_requests import StoreError

INDEX_FILE = ".gnp_scale_index.npz"
MOST_BYTES = 4 << 30
"""Of images that are indexed without being asked; a larger set takes minutes, which a run may not wait."""
_UPLOAD = {
    "s3": "aws s3 cp --recursive {folder.name} {folder}",
    "gs": "gcloud storage cp -r {folder.name} {folder.parent}/",
}
"""Commands that copy a data set into a bucket, with the index, whose name begins with a dot."""
_NUM_THREADS = 16
"""Threads that read a data set for its index; they wait for disks and servers most of the time."""


def open_folder(folder: str) -> Contents:
    """The data set in `folder`: that of TensorFlow Datasets or `gnp-scale data prepare`, Parquet, or one of `FORMS`.

    For the latter an index is made at the first time, for which all images are read once. On a store it must be there.

    Raises:
        FileNotFoundError: there is no such local folder.
        ConfigError: there is no data set, or it lacks something.
        StoreError: the store that has it does not answer.
    """
    path = run_folder("data.root", folder)
    if isinstance(path, StorePath):
        try:
            return _open_stored(path)
        except StoreError as error:
            raise byte_ranges.unreadable(path, error) from error
    if not path.is_dir():
        raise FileNotFoundError(2, "no such folder", folder)
    _check_whole(path, (path / JOURNAL_FILE).exists())
    with reading(path):
        return open_tfds(path) if is_tfds(path) else open_parquet(path) or _indexed(path)


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Inside the block the files of the data set in `folder` are read.

    Raises:
        DamagedFileError: one of them cannot be read.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DamagedFileError(
            f"{error.filename or folder} cannot be read ({reason}): get it again, or mend its rights"
        ) from error


def _open_stored(folder: StorePath) -> Contents:
    names = folder.names()
    _check_whole(folder, JOURNAL_FILE in names)
    if INDEX_FILE in names:
        return byte_ranges.load(folder / INDEX_FILE, folder)
    if INFO_FILE in names and folder.scheme == "gs":
        return open_tfds(folder)
    prepare = f"gnp-scale data prepare SOURCE {folder.name} --form webdataset"
    upload = _UPLOAD[folder.scheme].format(folder=folder)
    if INFO_FILE in names:
        raise ConfigError(
            f"{folder} has ArrayRecord shards, which are read from local disks and gs:// only: run {prepare}, and "
            f"{upload}"
        )
    if names:
        raise ConfigError(
            f"{folder} has no index ({INDEX_FILE}): run gnp-scale data index {folder.name} on a local copy, and "
            f"{upload}"
        )
    raise ConfigError(
        f"there is nothing below {folder}: name a bucket that exists and a data set in it, or run {prepare}, and "
        f"{upload}"
    )


def _check_whole(folder: Folder, has_journal: bool) -> None:
    if has_journal:
        raise ConfigError(f"{folder} is not finished: run the same gnp-scale data prepare again")


def write_index(folder: Path) -> Contents:
    """Makes the index of the images in `folder`, and stores it there.

    Raises:
        ConfigError: there are no images, one cannot be read, the folder is not finished, or the index cannot be stored.
    """
    _check_whole(folder, (folder / JOURNAL_FILE).exists())
    with reading(folder):
        return store_index(folder, *_listed(folder))


def store_index(folder: Path, form: str, listed: Listing) -> Contents:
    """Makes the index of the images that are listed, and stores it in `folder`.

    Raises:
        ConfigError: it cannot be stored.
    """
    contents = _make_index(folder, form, listed)
    _store(folder / INDEX_FILE, contents)
    return contents


def _indexed(folder: Path) -> Contents:
    if (folder / INDEX_FILE).exists():
        return byte_ranges.load(folder / INDEX_FILE, folder)
    cached, (form, listed) = _cached_index(folder), _listed(folder)
    if cached is not None and cached.exists():
        contents = byte_ranges.load(cached, folder)
        if _has_all(contents, listed):
            return contents
    if (num_bytes := _num_bytes(listed[1])) > MOST_BYTES:
        raise ConfigError(
            f"{folder} has {num_bytes / 1e9:.1f} GB of images without checksums: run gnp-scale data index {folder} "
            "once, or gnp-scale data prepare"
        )
    contents = _make_index(folder, form, listed)
    if cached is not None:
        _store(cached, contents)
    return contents


def _has_all(contents: Contents, listed: Listing) -> bool:
    """Whether an index has all classes and images that are listed, with these sizes, and no other class. An image that
    is gone, or has changed and kept its size, is the problem of its record.
    """
    class_names, listing = listed
    if list(contents.class_names) != list(class_names):
        return False
    indexed = {
        (split, source.entry(number))
        for split, source in contents.splits.items()
        if isinstance(source, byte_ranges.ByteRanges)
        for number in range(len(source))
    }
    return all((split, entry) in indexed for split, entries in listing.items() for entry in entries)


def _num_bytes(listing: Mapping[str, list[Entry]]) -> int:
    return sum(entry.num_bytes for entries in listing.values() for entry in entries)


def _make_index(folder: Path, form: str, listed: Listing) -> Contents:
    class_names, listing = listed
    with progress_of(f"Indexing {folder}", _num_bytes(listing)) as on_read:
        splits = {
            name: byte_ranges.indexed(folder, entries, on_read, _NUM_THREADS) for name, entries in listing.items()
        }
    return Contents(form, tuple(class_names), splits)


def _listed(folder: Path) -> tuple[str, Listing]:
    for form, listed in FORMS.items():
        if (listing := listed(folder)) is not None:
            class_names, splits = listing
            for entry in (entry for entries in splits.values() for entry in entries):
                if not 0 <= entry.label < len(class_names):
                    raise DamagedFileError(
                        f"{folder}: {entry.name} has the label {entry.label}, where there are {len(class_names)} "
                        "classes"
                    )
            return form, (class_names, {name: entries for name, entries in splits.items() if entries})
    raise ConfigError(
        f"{folder} holds no data set: it has neither dataset_info.json, Parquet or tar files, nor a folder of images "
        "for each class"
    )


def _cached_index(folder: Path) -> Path | None:
    """The index in the user's cache, for a data set in which there is none."""
    cache = user_cache("index")
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:16]
    return None if cache is None else Path(cache) / f"{name}.npz"


def _store(path: Path, contents: Contents) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        byte_ranges.save(path, contents)
    except OSError as error:
        raise ConfigError(f"the index {path} cannot be written ({error.strerror}): make its folder writable") from error
