"""Downloads the public data sets: checks digests, resumes interrupted transfers, installs only complete files."""

import contextlib
import filecmp
import http.client
import os
import re
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from gnp_scale.checks import ConfigError, PassingError
from gnp_scale.data.progress import byte_progress
from gnp_scale.run.files import sha256, try_lock, wait_for_lock
from gnp_scale.run.streams import one_line, say

NUM_ATTEMPTS = 5
FIRST_WAIT_S = 1.0
"""Pause before the second attempt; it doubles after each attempt."""
TIMEOUT_S = 30.0
"""Longest wait for a connection and for each read."""
CHUNK_BYTES = 1 << 18
PASSING_STATUSES = (408, 425, 429)
"""Client errors that are retried, like all server errors."""
NETWORK_ERRORS = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


class DownloadError(ConfigError):
    """A download has failed; one line says which, why, and what to do."""


@dataclass(frozen=True)
class Source:
    """Where a data set is published, and the SHA-256 digest of each of its files."""

    base_url: str
    digests: Mapping[str, str]


# The digests are of the published files. The publishers give their MD5: for Fashion-MNIST in its README (8d4fb7e6...,
# 25c81989..., bef4ecab..., bb300cfd...), for CIFAR on its page (c32a1d4a..., 03b5dce0...).
SOURCES: Mapping[str, Source] = {
    "fashion_mnist": Source(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        {
            "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        },
    ),
    "cifar10": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
    ),
    "cifar100": Source(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
    ),
}


def download(
    name: str,
    root: Path | str,
    base_url: str | None = None,
    *,
    sources: Mapping[str, Source] = SOURCES,
    console: Console | None = None,
) -> Path:
    """Puts the files of data set `name` into the folder `root/name`, from `base_url` or from the publisher.

    It keeps existing files with the right digest, unpacks archives, and shows progress on `console` (standard error
    when None). Jobs may read the folder meanwhile; a second download waits for the first.

    Raises:
        DownloadError: no such data set, a refusal, a wrong digest, an archive with unsafe members, a full disk.
        PassingError: no answer in `NUM_ATTEMPTS` attempts.
    """
    if name not in sources:
        raise DownloadError(f"data set {name} has no download: give one of {', '.join(sorted(sources))}")
    source = sources[name]
    base_url = base_url or source.base_url
    if not _is_address(base_url):
        raise DownloadError(f"--url is {base_url}: give an address such as https://host/folder, of ASCII alone")
    folder = Path(root) / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder), byte_progress(console) as progress:
            for file, digest in source.digests.items():
                _fetch(f"{base_url.rstrip('/')}/{file}", folder / file, digest, progress)
                if file.endswith(".tar.gz"):
                    _unpack(folder / file)
    except OSError as error:
        raise DownloadError(f"cannot write data set {name} to {folder}: {error}") from error
    return folder


def _is_address(url: str) -> bool:
    try:
        parts = urllib.parse.urlsplit(url)
        is_of_a_host = bool((parts.hostname or "").encode("idna")) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False
    return is_of_a_host and parts.scheme in ("https", "http") and re.fullmatch("[!-~]+", url) is not None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Inside the block no other download writes into `folder`."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if not try_lock(file):
            say(f"another gnp-scale data download writes into {folder}: waiting for its end")
            wait_for_lock(file)
        yield
    finally:
        os.close(file)


def _fetch(url: str, target: Path, digest: str, progress: Progress) -> None:
    """Downloads `url` to `target`, unless it exists; `target.part` keeps a partial file for the next attempt."""
    if target.exists() and sha256(target) == digest:
        return
    part = target.with_name(f"{target.name}.part")
    task = progress.add_task(target.name, total=None)

    def report(num_bytes: int, total: int | None) -> None:
        progress.update(task, completed=num_bytes, total=total)

    _transfer_with_retries(url, part, report)
    found = sha256(part)
    if found != digest:
        part.unlink()
        raise DownloadError(
            f"{url} has SHA-256 {found}, not {digest}: it was discarded; run the command again, or name another "
            "mirror with --url"
        )
    part.replace(target)


def _transfer_with_retries(url: str, part: Path, report: Callable[[int, int | None], None]) -> None:
    failure: Exception | None = None
    for attempt in range(NUM_ATTEMPTS):
        if attempt:
            time.sleep(FIRST_WAIT_S * 2 ** (attempt - 1))
        try:
            return _transfer(url, part, report)
        except NETWORK_ERRORS as error:
            failure = error
            if isinstance(error, urllib.error.HTTPError) and error.code < 500 and error.code not in PASSING_STATUSES:
                reason = f"{url} cannot be downloaded{_way(url)}: {one_line(error)}; name another mirror with --url"
                raise DownloadError(reason) from error
    assert failure is not None
    raise PassingError(
        f"{url} could not be fetched{_way(url)} in {NUM_ATTEMPTS} attempts: {one_line(failure)}; run the command again "
        "to resume, or name another mirror with --url"
    ) from failure


def _way(url: str) -> str:
    """The proxy of the environment through which `url` is fetched, in words, without its password."""
    parts = urllib.parse.urlsplit(url)
    proxy = urllib.request.getproxies().get(parts.scheme)
    if not proxy or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f" through the proxy {proxy.rpartition('@')[2]} of {parts.scheme}_proxy"


def _transfer(url: str, part: Path, report: Callable[[int, int | None], None]) -> None:
    """One attempt: requests what `part` lacks, and starts from 0 if the server sends the whole file."""
    num_bytes = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={num_bytes}-"} if num_bytes else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        # The server has no more bytes: the digest shows whether `part` is the file.
        if error.code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and num_bytes:
            return
        raise
    with response:
        resumed = response.status == HTTPStatus.PARTIAL_CONTENT
        num_bytes = num_bytes if resumed else 0
        total = None if response.length is None else num_bytes + response.length
        with part.open("ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                num_bytes += len(chunk)
                report(num_bytes, total)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and num_bytes < total:
        raise ConnectionError(f"the connection ended after {num_bytes} of {total} bytes")


def _unpack(archive: Path) -> None:
    """Unpacks `archive` into its own folder. Each top folder appears complete or not at all; an intact one stays."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as scratch:
        try:
            with tarfile.open(archive, "r:gz") as members:
                members.extractall(scratch, filter="data")
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise DownloadError(f"{archive} was not unpacked: {error}; fetch it again from a trusted mirror") from error
        for unpacked in Path(scratch).iterdir():
            final = archive.parent / unpacked.name
            if _is_intact(final, unpacked):
                continue
            if final.exists():
                shutil.rmtree(final)
            unpacked.replace(final)


def _is_intact(folder: Path, original: Path) -> bool:
    """Whether `folder` has all files of `original`."""
    files = [path.relative_to(original) for path in original.rglob("*") if path.is_file()]
    pairs = [(folder / file, original / file) for file in files]
    return folder.is_dir() and all(own.is_file() and filecmp.cmp(own, other, shallow=False) for own, other in pairs)
