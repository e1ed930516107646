"""`gnp-scale data verify`: compares every byte of a data set with its checksums, and may decode every image."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gnp_scale.data import decode
from gnp_scale.data.containers.byte_ranges import ByteRanges
from gnp_scale.data.containers.listings import FORMS, samples
from gnp_scale.data.containers.open_folder import INDEX_FILE, open_folder, reading
from gnp_scale.data.containers.record import Contents, Record, Source
from gnp_scale.data.containers.tfds import TfdsSplit
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.data.manifest import MANIFEST_FILE, Manifest, Shard
from gnp_scale.data.progress import progress_of
from gnp_scale.data.shard_forms import SHARD_FORMS
from gnp_scale.run.files import sha256

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

    In a prepared data set of ArrayRecord, the records of a shard whose digest is right are read only to decode them.
    Those of a WebDataset are compared with its index too.

    Raises:
        ConfigError: there is no data set, or one of its files cannot be read.
    """
    contents = open_folder(str(folder))
    with reading(folder):
        return _problems(folder, contents, num_threads, decodes)


def _problems(folder: Path, contents: Contents, num_threads: int, decodes: bool) -> tuple[int, list[str]]:
    manifest = Manifest.read(folder) if (folder / MANIFEST_FILE).exists() else None
    problems = list(_strangers(folder, contents, manifest))
    num_examples = sum(len(source) for source in contents.splits.values())
    with progress_of(f"Reading {folder}", None) as advance, ThreadPoolExecutor(num_threads) as pool:
        futures = [pool.submit(_check, part, advance, decodes) for part in _parts(folder, contents, manifest)]
        for future in futures:
            problems += future.result()
    return num_examples, problems


def _strangers(folder: Path, contents: Contents, manifest: Manifest | None) -> Iterator[str]:
    """What is in the folder but not in the manifest or the index, and the other way round."""
    if manifest is not None:
        if manifest.class_names != contents.class_names:
            yield f"the class names differ from those of {MANIFEST_FILE}"
        if contents.form == "webdataset" and not (folder / INDEX_FILE).exists():
            yield f"{INDEX_FILE} is missing, without which no bucket is read: run gnp-scale data index {folder}"
        known = {shard.file for shards in manifest.splits.values() for shard in shards}
        forms = [form for form in SHARD_FORMS.values() if any(map(form.is_shard, known))]
        found = {path.name for path in folder.iterdir() if any(form.is_shard(path.name) for form in forms)}
        yield from (f"{name} does not belong to the data set" for name in sorted(found - known))
        for name, shards in manifest.splits.items():
            due = [(shard.file, shard.num_examples) for shard in shards]
            if name not in contents.splits or [(file, len(ids)) for file, ids in _shards(contents.splits[name])] != due:
                yield f"the shards of split {name} differ from those of {MANIFEST_FILE}"
    elif contents.form in FORMS:
        _, listing = FORMS[contents.form](folder) or ((), {})
        listed = {entry.name for entries in listing.values() for entry in entries}
        for source in contents.splits.values():
            assert isinstance(source, ByteRanges)
            listed -= {source.entry(number).name for number in range(len(source))}
        yield from (f"{name} is not in the index: run gnp-scale data index again" for name in sorted(listed))


def _shards(source: Source) -> list[tuple[str, range]]:
    """The files of a prepared split, and the numbers of their records."""
    if isinstance(source, TfdsSplit):
        files, lengths = [Path(path).name for path in source.records.paths], source.records.lengths
    else:
        assert isinstance(source, ByteRanges)
        files, lengths = source.files, np.bincount(source.arrays["file"], minlength=len(source.files)).tolist()
    ends = np.cumsum(lengths).tolist()
    return [(file, range(end - length, end)) for file, length, end in zip(files, lengths, ends, strict=True)]


def _parts(folder: Path, contents: Contents, manifest: Manifest | None) -> Iterator[_Part]:
    for name, source in contents.splits.items():
        if manifest is None and not isinstance(source, TfdsSplit):
            for start in range(0, len(source), _PART):
                yield _Part(name, source, range(start, min(start + _PART, len(source))))
            continue
        shards = {} if manifest is None else {shard.file: shard for shard in manifest.splits.get(name, ())}
        for file, numbers in _shards(source):
            yield _Part(name, source, numbers, folder / file, shards.get(file))


def _check(part: _Part, advance: Advance, decodes: bool) -> list[str]:
    problems = []
    is_indexed = isinstance(part.source, ByteRanges)
    if part.path is not None and part.shard is not None:
        if not part.path.exists():
            return [f"{part.path.name} is missing"]
        if sha256(part.path) != part.shard.sha256:
            problems.append(f"{part.path.name} is not the file of {MANIFEST_FILE}: its SHA-256 differs")
        elif not decodes and not is_indexed:
            advance(len(part.numbers), part.shard.num_bytes)
            return []
    try:
        if part.path is not None and is_indexed:
            problems += _check_index(part.path, part)
        return problems + _check_records(part, advance, decodes)
    except DamagedFileError as error:
        return [*problems, str(error)]


def _check_index(path: Path, part: _Part) -> list[str]:
    """Where a tar file has other examples or labels than the index, which training reads."""
    assert isinstance(part.source, ByteRanges)
    indexed = {part.source.entry(number) for number in part.numbers}
    differ = {entry.name for entry in indexed ^ set(samples(path.parent, path.name))}
    return [f"{part.split}: {name} has another label or place than in the index" for name in sorted(differ)]


def _check_records(part: _Part, advance: Advance, decodes: bool) -> list[str]:
    problems, counts = [], Counter[str]()
    for start in range(0, len(part.numbers), _CHUNK):
        records = part.source.read(part.numbers[start : start + _CHUNK])
        advance(len(records), sum(len(record.data) for record in records))
        for record in records:
            counts[str(record.label)] += 1
            if problem := record.flaw() or (_undecodable(record) if decodes else ""):
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
