"""The forms in which `gnp-scale data prepare` writes a data set: how shards are named, written and described."""

import contextlib
import io
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from array_record.python.array_record_module import ArrayRecordWriter

from gnp_scale.data.containers import example_proto
from gnp_scale.data.containers.listings import CLASS_NAMES_FILE, samples
from gnp_scale.data.containers.open_folder import store_index
from gnp_scale.data.containers.record import Contents, Record
from gnp_scale.data.containers.tfds import FILE_TEMPLATE, description, shard_file
from gnp_scale.data.manifest import Shard
from gnp_scale.run.files import replace_file
from gnp_scale.run.streams import one_line

_OPTIONS = "group_size:1,uncompressed"
"""Each record can be read alone; images are compressed already."""
_MAGIC = {b"\x89PNG": "png", b"RIFF": "webp", b"BM": "bmp"}
"""How the files of formats other than JPEG begin."""

type Splits = Mapping[str, Sequence[Shard]]


class Writer(Protocol):
    """Writes a shard; the same records give the same bytes."""

    def write(self, number: int, record: Record) -> None:
        """Adds a record, which has this number in its split."""
        ...

    def close(self) -> None:
        """Ends the file."""
        ...


@dataclass(frozen=True)
class ShardForm:
    """A form of prepared data sets."""

    file: Callable[[str, str, int, int], str]
    """The name of a shard, from the data set, the split, the number of the shard, and how many there are."""
    is_shard: Callable[[str], bool]
    """Whether a name is that of a shard."""
    open: Callable[[Path], Writer]
    """Opens a new shard."""
    describe: Callable[[Path, Contents, Splits], None]
    """Writes what else a data set of these shards needs."""


class _ArrayRecordShard:
    def __init__(self, path: Path) -> None:
        with _errors_of_the_disk():
            self._writer = ArrayRecordWriter(str(path), _OPTIONS)

    def write(self, number: int, record: Record) -> None:
        with _errors_of_the_disk():
            self._writer.write(example_proto.serialize(record.data, record.label, record.name))

    def close(self) -> None:
        with _errors_of_the_disk():
            self._writer.close()


@contextlib.contextmanager
def _errors_of_the_disk() -> Iterator[None]:
    """ArrayRecord has a RuntimeError for a full disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def _describe_array_records(out: Path, contents: Contents, splits: Splits) -> None:
    lengths = {name: [(shard.num_examples, shard.num_bytes) for shard in shards] for name, shards in splits.items()}
    for name, text in description(out.name, contents.class_names, lengths).items():
        replace_file(out / name, text.encode())


class _TarShard:
    """An example is an image and its label. Its folder is its number, so that no two examples have one name."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.PAX_FORMAT)  # noqa: SIM115

    def write(self, number: int, record: Record) -> None:
        # The name ends at its first dot, and label files know the image by it.
        stem = re.sub(r"[\x00-\x1f]", "_", record.name.rpartition("/")[2].partition(".")[0]) or "image"
        self._add(f"{number:08d}/{stem}.{_suffix(record.data)}", record.data)
        self._add(f"{number:08d}/{stem}.cls", str(record.label).encode())

    def _add(self, name: str, data: bytes) -> None:
        # By default a member belongs to nobody, and is of 1970.
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        self._tar.close()


def _suffix(data: bytes) -> str:
    return next((suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), "jpg")


def _describe_tars(out: Path, contents: Contents, splits: Splits) -> None:
    replace_file(out / CLASS_NAMES_FILE, "".join(f"{name}\n" for name in contents.class_names).encode())
    entries = {
        name: [entry for shard in shards for entry in samples(out, shard.file)] for name, shards in splits.items()
    }
    store_index(out, "webdataset", (contents.class_names, entries))


SHARD_FORMS: Mapping[str, ShardForm] = {
    "arrayrecord": ShardForm(
        file=lambda dataset, split, number, num_shards: shard_file(FILE_TEMPLATE, dataset, split, number, num_shards),
        is_shard=lambda name: ".array_record" in name,
        open=_ArrayRecordShard,
        describe=_describe_array_records,
    ),
    "webdataset": ShardForm(
        file=lambda dataset, split, number, num_shards: f"{dataset}-{split}-{number:05d}.tar",
        is_shard=lambda name: name.endswith(".tar"),
        open=_TarShard,
        describe=_describe_tars,
    ),
}
"""By the name of `--form`."""
