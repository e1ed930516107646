"""What lies in a data set of files and tar files: for each form, its classes and the place of each image.

A further form is one function, in `FORMS`.
"""

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gnp_scale.config import ConfigError, check
from gnp_scale.data.containers.entries import Entry, Listing, whole_file
from gnp_scale.data.containers.grocery import grocery_store
from gnp_scale.data.containers.record import SPLIT_NAMES, split_name
from gnp_scale.data.formats import MOST_CLASSES, DamagedFileError, lines_of
from gnp_scale.data.manifest import MANIFEST_FILE, Manifest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Of the files that are images, in lower case."""

IMAGENET_TRAIN, IMAGENET_VAL = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"
CLASS_NAMES_FILE = "classnames.txt"
"""Of a WebDataset: a line for each class."""
IMAGENET_DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
_SPLIT_FOLDERS = ("train", "validation", "test", *SPLIT_NAMES)


def imagenet_tars(folder: Path) -> Listing | None:
    """The files of image-net.org: a tar of one tar for each class, a tar of the validation images, and the devkit.

    Labels are the ranks of the WordNet numbers (n01440764 is 0), as in all published networks.
    """
    if not (folder / IMAGENET_TRAIN).exists():
        return None
    train = list(_tar_of_tars(folder, IMAGENET_TRAIN))
    wnids = sorted({wnid for wnid, _ in train})
    rank = {wnid: number for number, wnid in enumerate(wnids)}
    splits = {"train": [entry._replace(label=rank[wnid]) for wnid, entry in train]}
    if (folder / IMAGENET_VAL).exists():
        names = {
            member.name: Entry(IMAGENET_VAL, member.offset_data, member.size, 0, member.name)
            for _, member in _members(folder / IMAGENET_VAL)
        }
        truth = _imagenet_truth(folder / IMAGENET_DEVKIT)
        if len(names) != len(truth):
            raise DamagedFileError(f"{folder / IMAGENET_VAL} holds {len(names)} images, where {len(truth)} are due")
        in_order = [names[name] for name in sorted(names)]
        splits["validation"] = [entry._replace(label=rank[wnid]) for entry, wnid in zip(in_order, truth, strict=True)]
    return wnids, splits


def _imagenet_truth(devkit: Path) -> list[str]:
    """The WordNet numbers of the validation images, in the order of their names."""
    from scipy.io import loadmat

    if not devkit.exists():
        raise ConfigError(f"{devkit} is missing: it has the labels of the validation images; get it from image-net.org")
    base = "ILSVRC2012_devkit_t12/data/"
    with tarfile.open(devkit) as tar:
        truth = [int(line) for line in _member_bytes(tar, f"{base}ILSVRC2012_validation_ground_truth.txt").split()]
        synsets = loadmat(io.BytesIO(_member_bytes(tar, f"{base}meta.mat")), squeeze_me=True)["synsets"]
    wnid_of = {int(synset["ILSVRC2012_ID"]): str(synset["WNID"]) for synset in np.atleast_1d(synsets)}
    return [wnid_of[number] for number in truth]


def _member_bytes(tar: tarfile.TarFile, name: str) -> bytes:
    try:
        file = tar.extractfile(name)
    except KeyError as error:
        raise DamagedFileError(f"{tar.name} has no {name}") from error
    assert file is not None, name
    return file.read()


def _tar_of_tars(folder: Path, name: str) -> Iterator[tuple[str, Entry]]:
    for outer, member in _members(folder / name):
        for _, image in _members(folder / name, outer.extractfile(member)):
            where = member.offset_data + image.offset_data
            yield member.name.removesuffix(".tar"), Entry(name, where, image.size, 0, image.name)


def _members(path: Path, file: Any = None) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """The files in a tar file, or in a member of one; if it is compressed, they have no place in it."""
    try:
        with tarfile.open(path, "r:", fileobj=file) as tar:
            for member in tar:
                if member.isfile():
                    yield tar, member
    except tarfile.TarError as error:
        raise DamagedFileError(f"{path} is not a whole, uncompressed tar file: {error}") from error


def webdataset(folder: Path) -> Listing | None:
    """Tar files whose members with the same beginning, up to the first dot, are an example: an image and `.cls`.

    Each has its split from the manifest of `gnp-scale data prepare`. Without one, the last word of its name that is a
    split's is its split, as in imagenet1k-train-0000.tar; without such a word it is `train`.
    """
    shards = sorted(path.name for path in folder.glob("[!.]*.tar"))
    if not shards:
        return None
    prepared = Manifest.read(folder).splits if (folder / MANIFEST_FILE).exists() else {}
    split_of = {shard.file: split for split, files in prepared.items() for shard in files}
    splits: dict[str, list[Entry]] = {}
    for shard in shards:
        if not split_of or shard in split_of:
            splits.setdefault(split_of.get(shard) or _named_split(shard), []).extend(samples(folder, shard))
    labels = {entry.label for entries in splits.values() for entry in entries}
    if not labels:
        raise DamagedFileError(f"{folder} has tar files, but no image with a .cls beside it in them")
    return _names_in(folder / CLASS_NAMES_FILE, 1 + max(labels)), splits


def _named_split(shard: str) -> str:
    words = Path(shard).stem.replace("_", "-").lower().split("-")
    return next((split_name(word) for word in reversed(words) if word in _SPLIT_FOLDERS), "train")


def samples(folder: Path, shard: str) -> Iterator[Entry]:
    """The examples in a shard of a WebDataset.

    Raises:
        DamagedFileError: it is no whole tar file, or a label is no number.
    """
    image: Entry | None = None
    label: int | None = None
    key = None
    for tar, member in _members(folder / shard):
        parent, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        if (parent, stem) != key:
            key, image, label = (parent, stem), None, None
        if f".{suffix.lower()}" in SUFFIXES:
            image = Entry(shard, member.offset_data, member.size, 0, member.name)
        elif suffix == "cls":
            label = _label(tar, member)
        if image is not None and label is not None:
            yield image._replace(label=label)
            image = None


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo) -> int:
    file = tar.extractfile(member)
    text = b"" if file is None else file.read(32)
    if not text.strip().isdigit() or int(text) >= MOST_CLASSES:
        raise DamagedFileError(
            f"{tar.name} has the label {text!r} in {member.name}: a whole number below {MOST_CLASSES} is due"
        )
    return int(text)


def _names_in(path: Path, num_classes: int) -> Sequence[str]:
    if not path.exists():
        return [str(number) for number in range(num_classes)]
    names = lines_of(path)
    if len(names) < num_classes:
        raise DamagedFileError(f"{path} has {len(names)} names, but the labels go up to {num_classes - 1}")
    return names


def image_folder(folder: Path) -> Listing | None:
    """A folder for each class in a folder for each split; without splits, all images are those of `train`.

    The classes are sorted by name, or by number if all names are numbers (as in ImageNet-V2).
    """
    parts = [path for path in _folders(folder) if path.name.lower() in _SPLIT_FOLDERS]
    split_folders = _by_split(parts) or {"train": folder}
    names = sorted({path.name for split in split_folders.values() for path in _folders(split)})
    if not names:
        if parts:
            raise ConfigError(
                f"{parts[0]} is taken for a split, but holds no folder for each class: make them, or rename it"
            )
        return None
    if all(name.isdecimal() for name in names):
        names.sort(key=int)
    splits = {}
    for split, path in split_folders.items():
        listed = [(label, file) for label, name in enumerate(names) for file in _images(path / name)]
        if listed:
            splits[split] = [whole_file(folder, file, label) for label, file in listed]
    if not splits:
        return None
    labels = {entry.label for entries in splits.values() for entry in entries}
    empty = [name for label, name in enumerate(names) if label not in labels]
    check(not empty, f"{folder} has no image of the class {', '.join(empty[:1])}: remove its folders, or fill them")
    return names, splits


def _by_split(parts: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in parts:
        other = found.setdefault(split_name(path.name), path)
        if other != path:
            raise ConfigError(f"{other} and {path.name} are folders of the same split: join them, or rename one")
    return found


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    """Hidden files and folders are of other programs, such as `._1.png` and `.ipynb_checkpoints`."""
    found = (path for path in folder.rglob("[!.]*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(path for path in found if not any(name.startswith(".") for name in path.relative_to(folder).parts))


FORMS: Mapping[str, Callable[[Path], Listing | None]] = {
    "imagenet_tars": imagenet_tars,
    "webdataset": webdataset,
    "grocery_store": grocery_store,
    "image_folder": image_folder,
}
"""In the order in which they are tried."""
