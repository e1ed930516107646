"""Downloads from a server that misbehaves: each ends with the right bytes in place, or with one clear line."""

import hashlib
import io
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console

from gnp_scale.checks import PassingError
from gnp_scale.data import download as module
from gnp_scale.data.download import SOURCES, DownloadError, Source, download
from gnp_scale.exit_codes import exit_code

CONTENT = bytes(range(256)) * 4096
QUIET = Console(file=io.StringIO())


@dataclass
class Server:
    """The behaviour of a local server, and the requests (their `Range` headers) that it received."""

    content: dict[str, bytes] = field(default_factory=lambda: {"file.bin": CONTENT})
    num_cuts: int = 0
    statuses: list[int] = field(default_factory=list)
    honours_range: bool = True
    length: str = ""
    """What it says of the length, instead of the truth."""
    first_bytes: bytes = b""
    """What it sends instead of an answer."""
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""

    def respond(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        if self.first_bytes:
            request.wfile.write(self.first_bytes)
            return None
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            return request.send_error(status)
        body = self.content.get(request.path.strip("/"))
        if body is None:
            return request.send_error(404)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.honours_range else 0
        if start >= len(body) and start:
            return request.send_error(416)
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", self.length or str(len(body) - start))
        request.end_headers()
        end = len(body)
        if self.num_cuts:
            self.num_cuts -= 1
            end = start + (len(body) - start) // 2
        request.wfile.write(body[start:end])
        return None


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    behaviour = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            behaviour.respond(self)

        def log_message(self, format, *args):  # noqa: A002
            pass

    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        behaviour.url = f"http://127.0.0.1:{httpd.server_port}"
        yield behaviour
        httpd.shutdown()
        thread.join()


def sources_of(files: dict[str, bytes]) -> dict[str, Source]:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return {"toy": Source("http://127.0.0.1:9/nowhere", digests)}


def fetch(server: Server, root: Path, sources: dict[str, Source] | None = None) -> Path:
    return download("toy", root, server.url, sources=sources or sources_of({"file.bin": CONTENT}), console=QUIET)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("behaviour", "num_requests"),
    [
        ({}, 1),
        ({"num_cuts": 3}, 4),
        ({"num_cuts": 1, "honours_range": False}, 2),
        ({"statuses": [500, 503, 429]}, 4),
        ({"length": "abc"}, 1),
    ],
    ids=["well", "cuts connections", "cuts and ignores Range", "fails for a while", "a length that is no number"],
)
def test_the_file_arrives(server: Server, tmp_path: Path, behaviour: dict, num_requests: int):
    vars(server).update(behaviour)
    assert fetch(server, tmp_path) == tmp_path / "toy"
    assert files_in(tmp_path / "toy") == {"file.bin": CONTENT}
    assert len(server.ranges) == num_requests


def test_an_interrupted_download_goes_on_where_it_was(server: Server, tmp_path: Path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "file.bin.part").write_bytes(CONTENT[:1000])
    fetch(server, tmp_path)
    assert server.ranges == ["bytes=1000-"]
    assert files_in(tmp_path / "toy") == {"file.bin": CONTENT}


def test_a_whole_part_is_taken_without_its_bytes(server: Server, tmp_path: Path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "file.bin.part").write_bytes(CONTENT)
    fetch(server, tmp_path)
    assert files_in(tmp_path / "toy") == {"file.bin": CONTENT}


def test_a_file_that_is_there_is_kept(server: Server, tmp_path: Path):
    fetch(server, tmp_path)
    fetch(server, tmp_path)
    assert len(server.ranges) == 1


def test_wrong_bytes_are_discarded(server: Server, tmp_path: Path):
    server.content["file.bin"] = CONTENT[::-1]
    with pytest.raises(
        DownloadError, match=r"^http://127.0.0.1:\d+/file.bin has SHA-256 [0-9a-f]{64}, not [0-9a-f]{64}"
    ):
        fetch(server, tmp_path)
    assert files_in(tmp_path / "toy") == {}


@pytest.mark.parametrize(
    ("statuses", "code", "expected", "num_requests"),
    [
        ([404], 2, "cannot be downloaded: HTTP Error 404: Not Found; name another mirror with --url", 1),
        ([403], 2, "cannot be downloaded: HTTP Error 403: Forbidden; name another mirror with --url", 1),
        ([500] * 9, 1, f"could not be fetched in {module.NUM_ATTEMPTS} attempts: HTTP Error 500", module.NUM_ATTEMPTS),
    ],
)
def test_refusals_are_told_in_one_line(
    server: Server, tmp_path: Path, statuses, code: int, expected: str, num_requests: int
):
    """A launcher tries again after code 1 only."""
    server.statuses = statuses
    with pytest.raises((DownloadError, PassingError)) as caught:
        fetch(server, tmp_path)
    assert exit_code(caught.value) == code
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.ranges) == num_requests


def test_what_arrived_waits_for_the_next_run(server: Server, tmp_path: Path):
    server.num_cuts = 99
    with pytest.raises(PassingError, match="the connection ended after"):
        fetch(server, tmp_path)
    (part,) = files_in(tmp_path / "toy").values()
    assert CONTENT.startswith(part)
    assert len(part) > len(CONTENT) // 2


def test_an_answer_of_another_protocol_is_told_in_one_line_that_can_be_printed(server: Server, tmp_path: Path):
    server.first_bytes = b"\x1b[31m\x00SSH-2.0\r\n"
    with pytest.raises(PassingError, match=r"could not be fetched in 5 attempts: .*SSH-2\.0") as caught:
        fetch(server, tmp_path)
    assert str(caught.value).isprintable()


def test_a_proxy_is_named_without_its_password(tmp_path: Path, monkeypatch):
    """Another mirror would not help then."""
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    monkeypatch.setenv("http_proxy", "http://me:secret@127.0.0.1:9")
    with pytest.raises(PassingError, match=r"through the proxy 127\.0\.0\.1:9 of http_proxy in 5 attempts") as caught:
        download("toy", tmp_path, "http://mirror.invalid", sources=sources_of({"file.bin": CONTENT}), console=QUIET)
    assert "secret" not in str(caught.value)


def test_no_server_is_told_in_one_line(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.001)
    with pytest.raises(PassingError, match=r"could not be fetched in 5 attempts: .*refused"):
        download("toy", tmp_path, sources=sources_of({"file.bin": CONTENT}), console=QUIET)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc",
        "ftp://127.0.0.1/",
        "mirror",
        "http://",
        "http://[",
        "http://a:b/",
        "http://a b/",
        "https://é/",
        "http://a..b/",
    ],
)
def test_only_web_addresses_are_mirrors(url: str, tmp_path: Path):
    with pytest.raises(DownloadError, match="give an address such as https://"):
        download("cifar10", tmp_path, url)


def test_unknown_data_sets_are_told(tmp_path: Path):
    with pytest.raises(
        DownloadError, match="data set digits has no download: give one of cifar10, cifar100, fashion_mnist"
    ):
        download("digits", tmp_path)


def test_a_folder_that_cannot_be_written_is_told(server: Server, tmp_path: Path):
    (tmp_path / "toy").write_bytes(b"a file in the way")
    with pytest.raises(DownloadError, match=r"^cannot write data set toy to "):
        fetch(server, tmp_path)


def test_a_full_disk_is_told_and_what_has_arrived_is_kept(server: Server, disk):
    disk.fill()
    with pytest.raises(DownloadError, match=r"^cannot write data set toy to .*No space left"):
        fetch(server, disk.path)
    disk.free()
    assert files_in(fetch(server, disk.path)) == {"file.bin": CONTENT}


def archive_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def link(name: str, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def test_an_archive_is_unpacked_and_a_damaged_folder_replaced(server: Server, tmp_path: Path):
    server.content["toy.tar.gz"] = archive_of((tarfile.TarInfo("folder/train.bin"), b"records"))
    sources = sources_of({"toy.tar.gz": server.content["toy.tar.gz"]})
    folder = fetch(server, tmp_path, sources)
    assert (folder / "folder" / "train.bin").read_bytes() == b"records"
    (folder / "folder" / "train.bin").write_bytes(b"damaged")
    fetch(server, tmp_path, sources)
    assert (folder / "folder" / "train.bin").read_bytes() == b"records"
    assert sorted(path.name for path in folder.iterdir()) == ["folder", "toy.tar.gz"]


def test_an_intact_folder_is_left_to_the_jobs_that_read_it(server: Server, tmp_path: Path):
    server.content["toy.tar.gz"] = archive_of((tarfile.TarInfo("folder/train.bin"), b"records"))
    sources = sources_of({"toy.tar.gz": server.content["toy.tar.gz"]})
    folder = fetch(server, tmp_path, sources)
    (folder / "folder" / "notes.txt").write_text("mine")
    before = (folder / "folder" / "train.bin").stat().st_ino
    fetch(server, tmp_path, sources)
    assert (folder / "folder" / "train.bin").stat().st_ino == before
    assert sorted(path.name for path in (folder / "folder").iterdir()) == ["notes.txt", "train.bin"]


def test_a_second_download_waits_and_finds_all_done(server: Server, tmp_path: Path, capsys):
    """As the tasks of an array of jobs that each begin with a download."""
    may_answer, sources = threading.Event(), sources_of({"file.bin": CONTENT})
    respond = server.respond

    def respond_later(request: BaseHTTPRequestHandler) -> None:
        may_answer.wait(30)
        respond(request)

    server.respond = respond_later
    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(fetch, server, tmp_path, sources) for _ in range(2)]
        deadline = time.monotonic() + 30
        while "waiting for its end" not in (said := capsys.readouterr().err):
            assert time.monotonic() < deadline, said
            time.sleep(0.01)
        may_answer.set()
        assert [files_in(each.result()) for each in both] == [{"file.bin": CONTENT}] * 2
    assert server.ranges == [None]


UNSAFE = {
    "parent": [(tarfile.TarInfo("../outside"), b"x")],
    "parent inside": [(tarfile.TarInfo("folder/../../../outside"), b"x")],
    "link": [(link("folder/link", "../../../outside"), b"")],
    "absolute link": [(link("folder/link", "/etc/passwd"), b"")],
    "no archive": None,
}


@pytest.mark.parametrize("members", UNSAFE.values(), ids=UNSAFE)
def test_unsafe_archives_leave_nothing_behind(server: Server, tmp_path: Path, members):
    content = b"no archive" if members is None else archive_of((tarfile.TarInfo("folder/fine"), b"fine"), *members)
    server.content["toy.tar.gz"] = content
    with pytest.raises(DownloadError, match=r"toy\.tar\.gz was not unpacked: "):
        fetch(server, tmp_path / "root", sources_of({"toy.tar.gz": content}))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "root",
        "root/toy",
        "root/toy/toy.tar.gz",
    ]


def test_the_published_sources_are_complete():
    assert set(SOURCES) == {"fashion_mnist", "cifar10", "cifar100"}
    for source in SOURCES.values():
        assert source.base_url.startswith("https://")
        assert all(len(bytes.fromhex(digest)) == 32 for digest in source.digests.values())
