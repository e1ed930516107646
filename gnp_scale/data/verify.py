"""`gnp-scale data verify`: compares every byte of a data set with its checksums, and may decode every image."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gnp_scale.data import decode
from gnp_scale.data.containers.byte_ranges import ByteRanges
from gnp_scale.data.containers.listings import FORMS
from gnp_scale.data.containers.open_folder import open_folder
from gnp_scale.data.containers.record import Contents, Record, Source
from gnp_scale.data.containers.tfds import TfdsSplit
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.data.manifest import MANIFEST_FILE, Manifest, Shard, digest
from gnp_scale.data.progress import progress_of

_CHUNK = 32
"""Records that a thread holds in memory."""
_PART = 1024
"""Records of a source without shards that are one job."""

type Advance = Callable[[int, int], None]


class _Part(NamedTuple):
    """Consecutive records that are checked by one thread, and what the manifest tells of them."""

    split: str
    source: Source
    numbers: range
    path: Path | None = None
    shard: Shard | None = None


def verify(folder: Path, num_threads: int, *, decodes: bool) -> tuple[int, list[str]]:
    """The number of examples in `folder`, and what is wrong with them, a line for each problem.

    In a prepared data set, the records of a shard whose digest is right are read only to decode their images.

    Raises:
        ConfigError: there is no data set.
    """
    contents = open_folder(str(folder))
    manifest = Manifest.read(folder) if (folder / MANIFEST_FILE).exists() else None
    problems = list(_strangers(folder, contents, manifest))
    num_examples = sum(len(source) for source in contents.splits.values())
    with progress_of(f"Reading {folder}", None) as advance, ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(_check, part, advance, decodes) for part in _parts(contents, manifest)]
        for future in futures:
            problems += future.result()
    return num_examples, problems


def _strangers(folder: Path, contents: Contents, manifest: Manifest | None) -> Iterator[str]:
    """What is in the folder but not in the manifest or the index, and the other way round."""
    if manifest is not None:
        if manifest.class_names != contents.class_names:
            yield f"the class names differ from those of {MANIFEST_FILE}"
        known = {shard.file for shards in manifest.splits.values() for shard in shards}
        found = {path.name for path in folder.iterdir() if ".array_record" in path.name}
        yield from (f"{name} does not belong to the data set" for name in sorted(found - known))
        for name, shards in manifest.splits.items():
            lengths = [shard.num_examples for shard in shards]
            source = contents.splits.get(name)
            if not isinstance(source, TfdsSplit) or list(source.records.lengths) != lengths:
                yield f"the shards of split {name} differ from those of {MANIFEST_FILE}"
    elif contents.form in FORMS:
        _, listing = FORMS[contents.form](folder) or ((), {})
        listed = {entry.name for entries in listing.values() for entry in entries}
        for source in contents.splits.values():
            assert isinstance(source, ByteRanges)
            listed -= {source.entry(number).name for number in range(len(source))}
        yield from (f"{name} is not in the index: run gnp-scale data index again" for name in sorted(listed))


def _parts(contents: Contents, manifest: Manifest | None) -> Iterator[_Part]:
    for name, source in contents.splits.items():
        if not isinstance(source, TfdsSplit):
            for start in range(0, len(source), _PART):
                yield _Part(name, source, range(start, min(start + _PART, len(source))))
            continue
        shards = {} if manifest is None else {shard.file: shard for shard in manifest.splits.get(name, ())}
        start = 0
        for path, length in zip(source.records.paths, source.records.lengths, strict=True):
            yield _Part(name, source, range(start, start + length), Path(path), shards.get(Path(path).name))
            start += length


def _check(part: _Part, advance: Advance, decodes: bool) -> list[str]:
    problems = []
    if part.path is not None and part.shard is not None:
        if not part.path.exists():
            return [f"{part.path.name} is missing"]
        if digest(part.path) == part.shard.sha256:
            if not decodes:
                advance(len(part.numbers), part.shard.num_bytes)
                return []
        else:
            problems.append(f"{part.path.name} is not the file of {MANIFEST_FILE}: its SHA-256 differs")
    try:
        return problems + _check_records(part, advance, decodes)
    except DamagedFileError as error:
        return [*problems, str(error)]


def _check_records(part: _Part, advance: Advance, decodes: bool) -> list[str]:
    problems, counts = [], Counter[str]()
    for start in range(0, len(part.numbers), _CHUNK):
        records = part.source.read(part.numbers[start : start + _CHUNK])
        advance(len(records), sum(len(record.data) for record in records))
        for record in records:
            counts[str(record.label)] += 1
            if problem := record.problem or (_undecodable(record) if decodes else ""):
                problems.append(f"{part.split}: {record.name}: {problem}")
    if part.shard is not None and not problems and counts != part.shard.class_counts:
        problems.append(f"{part.shard.file} has other labels than in {MANIFEST_FILE}")
    return problems


def _undecodable(record: Record) -> str:
    try:
        decode.pixels_of(record.data)
    except decode.ImageError as error:
        return str(error)
    return ""
