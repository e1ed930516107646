"""`gnp-scale data prepare`: a data set in any form to shards of ArrayRecord or WebDataset, with a hash of each record.

Shards are written side by side, each under another name until it is whole. A journal has a line for each whole shard,
so after a kill the same command goes on, and ends with the same bytes.
"""

import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from gnp_scale.config import ConfigError, check
from gnp_scale.data.containers.open_folder import open_folder
from gnp_scale.data.containers.record import Contents, Source
from gnp_scale.data.encode import UNCHANGED, Encoding
from gnp_scale.data.manifest import JOURNAL_FILE, MANIFEST_FILE, Manifest, Shard, locked_journal
from gnp_scale.data.progress import progress_of
from gnp_scale.data.sample import Sample, check_usable
from gnp_scale.data.shard_forms import SHARD_FORMS, ShardForm
from gnp_scale.run.files import NEW_SUFFIX, append_line, read_rows, sha256, sync

_CHUNK = 32
"""Records that a thread holds in memory."""


class _Output(NamedTuple):
    """Where and how a data set is written."""

    folder: Path
    form: ShardForm
    encoding: Encoding
    digests: Mapping[str, str]
    """Of the splits that are written, so that those of another data set, or a changed one, are refused."""


class _Task(NamedTuple):
    """A shard to write: the records `start` to `stop` of a split."""

    split: str
    file: str
    start: int
    stop: int


def prepare(
    folder: Path,
    out: Path,
    shard_bytes: int,
    num_threads: int,
    form_name: str = "arrayrecord",
    encoding: Encoding = UNCHANGED,
) -> Manifest:
    """Writes the data set in `folder` into `out`, in shards of about `shard_bytes`; goes on after a kill.

    `form_name` is one of `SHARD_FORMS`, and `encoding` says how images are changed.

    Raises:
        ConfigError: there is no data set, `out` holds something else or is being written by another process, a record
            of the source is damaged, or there is no program that adds restart markers.
        OSError: something cannot be written.
    """
    encoding.check()
    check(
        folder.resolve() not in out.resolve().parents,
        f"OUT {out} lies in SOURCE {folder}, and would be a part of it: give a folder beside it",
    )
    contents = open_folder(str(folder))
    for name in contents.class_names:
        check(
            _is_line(name),
            f"{folder} has the class {name!r}, whose name is no line of UTF-8, as shards need: rename it",
        )
    samples = {split: Sample(split, source) for split, source in contents.splits.items()}
    digests = {split: sample.digest() for split, sample in samples.items()}
    output = _Output(out, SHARD_FORMS[form_name], encoding, digests)
    out.mkdir(parents=True, exist_ok=True)
    if is_prepared(out):
        return _finished(output, contents)
    num_bytes = {split: sample.estimated_bytes(encoding) for split, sample in samples.items()}
    with locked_journal(out):
        return _write(output, contents, num_bytes, shard_bytes, num_threads)


def _write(
    output: _Output, contents: Contents, num_bytes: Mapping[str, int], shard_bytes: int, num_threads: int
) -> Manifest:
    """Writes the shards that are missing, and the files that describe them."""
    tasks = _plan(output, contents, num_bytes, shard_bytes)
    done = _begin(output, contents, tasks)
    lock = threading.Lock()
    with progress_of(f"Writing {output.folder}", sum(num_bytes.values())) as advance:
        for task in tasks:
            if task.file in done:
                num_done = done[task.file].num_examples
                # The file of a shard has more than the images.
                advance(num_done, num_bytes[task.split] * num_done // len(contents.splits[task.split]))

        def write(task: _Task) -> None:
            shard = _write_shard(output, contents.splits[task.split], task, advance)
            with lock:
                append_line(output.folder / JOURNAL_FILE, json.dumps(asdict(shard)).encode())
                done[shard.file] = shard

        with ThreadPoolExecutor(num_threads) as pool:
            futures = [pool.submit(write, task) for task in tasks if task.file not in done]
            try:
                for future in futures:
                    future.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    return _finish(output, contents, tasks, done)


def _plan(output: _Output, contents: Contents, num_bytes: Mapping[str, int], shard_bytes: int) -> list[_Task]:
    tasks = []
    name = Path(os.path.abspath(output.folder)).name  # Of "." too.
    for split, source in contents.splits.items():
        num_shards = max(1, min(len(source), round(num_bytes[split] / shard_bytes)))
        edges = [len(source) * number // num_shards for number in range(num_shards + 1)]
        for number in range(num_shards):
            file = output.form.file(name, split, number, num_shards)
            tasks.append(_Task(split, file, edges[number], edges[number + 1]))
    return tasks


def _begin(output: _Output, contents: Contents, tasks: Sequence[_Task]) -> dict[str, Shard]:
    """Begins the journal of these tasks, or reads which of their shards are whole.

    Raises:
        ConfigError: the folder holds another data set.
    """
    out = output.folder
    head = {
        "form": contents.form,
        "class_names": list(contents.class_names),
        "splits": _sizes(contents),
        "digests": output.digests,
        "files": [task.file for task in tasks],
        **output.encoding.named(),
    }
    journal = out / JOURNAL_FILE
    rows = list(read_rows(journal))
    if not rows:
        append_line(journal, json.dumps(head).encode())
        return {}
    if rows[0] != head:
        raise ConfigError(
            f"{out} was begun from another data set, or with other options: remove it, or give a new folder"
        )
    shards = [Shard(**row) for row in rows[1:]]
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    return {shard.file: shard for shard in shards if sizes.get(shard.file) == shard.num_bytes}


def _write_shard(output: _Output, source: Source, task: _Task, advance: Callable[[int, int], None]) -> Shard:
    """Writes a shard, and gives it its name when it is on the disk."""
    part, path = output.folder / f"{task.file}.part", output.folder / task.file
    counts: Counter[int] = Counter()
    writer = output.form.open(part)
    try:
        for numbers in _chunks(task):
            num_bytes = 0
            for number, record in zip(numbers, source.read(numbers), strict=True):
                check_usable(task.split, record)
                record = record._replace(data=output.encoding.of(record.data))
                writer.write(number, record)
                counts[record.label] += 1
                num_bytes += len(record.data)
            advance(len(numbers), num_bytes)
    finally:
        writer.close()
    sync(part)
    part.replace(path)
    sync(output.folder)
    by_label = {str(label): counts[label] for label in sorted(counts)}
    return Shard(path.name, task.stop - task.start, path.stat().st_size, sha256(path), by_label)


def _chunks(task: _Task) -> Iterator[range]:
    for start in range(task.start, task.stop, _CHUNK):
        yield range(start, min(start + _CHUNK, task.stop))


def _finish(output: _Output, contents: Contents, tasks: Sequence[_Task], done: Mapping[str, Shard]) -> Manifest:
    """Writes the files that describe the data set, and removes the journal last."""
    out = output.folder
    splits = {split: tuple(done[task.file] for task in tasks if task.split == split) for split in contents.splits}
    output.form.describe(out, contents, splits)
    manifest = Manifest(contents.form, contents.class_names, splits, output.encoding, output.digests)
    manifest.write(out)
    for left in (*out.glob("*.part"), *out.glob(f"*{NEW_SUFFIX}")):
        left.unlink()
    (out / JOURNAL_FILE).unlink()
    return manifest


def is_prepared(out: Path) -> bool:
    """Whether `prepare` has finished in `out`."""
    return (out / MANIFEST_FILE).exists() and not (out / JOURNAL_FILE).exists()


def _is_line(name: str) -> bool:
    return name.splitlines() == [name] and name.encode(errors="replace").decode() == name


def _finished(output: _Output, contents: Contents) -> Manifest:
    manifest = Manifest.read(output.folder)
    sizes = {name: sum(shard.num_examples for shard in shards) for name, shards in manifest.splits.items()}
    has_form = all(output.form.is_shard(shard.file) for shards in manifest.splits.values() for shard in shards)
    is_same = manifest.class_names == contents.class_names and sizes == _sizes(contents)
    is_same = is_same and manifest.digests in ({}, output.digests)
    if not is_same or not has_form or manifest.encoding != output.encoding:
        raise ConfigError(
            f"{output.folder} holds another data set, or one prepared with other options: give a new folder as OUT"
        )
    return manifest


def _sizes(contents: Contents) -> dict[str, int]:
    return {name: len(source) for name, source in contents.splits.items()}
