"""A server that speaks the part of the JSON API of Google Cloud Storage that gcsfs and TensorStore use.

Objects are in memory. Uploads in one request, in two parts and resumable; ranges; preconditions on generations; lists
with prefixes, delimiters and pages. See https://cloud.google.com/storage/docs/json_api/v1/objects.
"""

import itertools
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, unquote, urlsplit

_OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/(.+)")
_LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
_UPLOAD = re.compile(r"/upload(?:/resumable)?/storage/v1/b/([^/]+)/o")
_PAGE = 1000


class GcsServer(ThreadingHTTPServer):
    """A server with empty buckets; `url` is its address."""

    daemon_threads = True

    def __init__(self, *buckets: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.buckets: dict[str, dict[str, tuple[bytes, int]]] = {bucket: {} for bucket in buckets}
        """Content and generation of each object, by bucket and name."""
        self.sessions: dict[str, tuple[str, str, str | None, bytes]] = {}
        """Resumable uploads: bucket, name, precondition and the bytes so far."""
        self.needs_credentials = False
        self.lock, self.generations = threading.Lock(), itertools.count(1000)
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 1 << 16
    server: GcsServer

    def log_message(self, *arguments: object) -> None:
        return

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._upload)

    def do_DELETE(self) -> None:
        self._answer(self._delete)

    def _answer(self, act) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.server.needs_credentials and "Authorization" not in self.headers:
            self._send(401, {"error": {"code": 401, "message": "Anonymous caller does not have access"}})
            return
        with self.server.lock:
            status, content, headers = act(parts.path)
        self._send(status, content, **headers)

    def _send(self, status: int, content: dict | bytes, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header(
            "Content-Type", "application/json" if isinstance(content, dict) else "application/octet-stream"
        )
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _get(self, path: str):
        if match := _OBJECT.fullmatch(path):
            return self._read(match[1], unquote(match[2]))
        if match := _LIST.fullmatch(path):
            return self._list(match[1])
        bucket = path.removeprefix("/storage/v1/b/")
        return (
            (200, {"kind": "storage#bucket", "name": bucket}, {}) if bucket in self.server.buckets else _missing(path)
        )

    def _read(self, bucket: str, name: str):
        found = self.server.buckets.get(bucket, {}).get(name)
        if found is None:
            return _missing(name)
        data, generation = found
        if self.query.get("alt") != "media":
            return 200, _describe(bucket, name, data, generation), {}
        if self.query.get("ifGenerationNotMatch") == str(generation):
            return 304, b"", {}
        if self.query.get("ifGenerationMatch", str(generation)) != str(generation):
            return _failed_condition()
        headers = {"x_goog_generation": str(generation), "x_goog_stored_content_length": str(len(data))}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return 200, data, headers
        start = int(asked[1]) if asked[1] else max(0, len(data) - int(asked[2]))
        end = int(asked[2]) + 1 if asked[1] and asked[2] else len(data)
        if start >= len(data):
            return 416, b"", headers
        part = data[start:end]
        return 206, part, {**headers, "Content_Range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"}

    def _list(self, bucket: str):
        if bucket not in self.server.buckets:
            return _missing(bucket)
        prefix, delimiter = self.query.get("prefix", ""), self.query.get("delimiter")
        first, last = self.query.get("startOffset", ""), self.query.get("endOffset", "\U0010ffff")
        items, folders = [], set()
        for name, (data, generation) in sorted(self.server.buckets[bucket].items()):
            if not (name.startswith(prefix) and first <= name < last):
                continue
            head, found, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if found:
                folders.add(f"{prefix}{head}{delimiter}")
            else:
                items.append(_describe(bucket, name, data, generation))
        start = int(self.query.get("pageToken", 0))
        size = min(_PAGE, int(self.query.get("maxResults", _PAGE)))
        answer = {"kind": "storage#objects", "items": items[start : start + size], "prefixes": sorted(folders)}
        return 200, answer | ({"nextPageToken": str(start + size)} if start + size < len(items) else {}), {}

    def _upload(self, path: str):
        if "upload_id" in self.query:
            return self._upload_part(self.query["upload_id"])
        bucket = _UPLOAD.fullmatch(path)[1]
        if bucket not in self.server.buckets:
            return _missing(bucket)
        condition, name = self.query.get("ifGenerationMatch"), self.query.get("name")
        if self.query["uploadType"] == "media":
            return self._store(bucket, name, self.body, condition)
        if self.query["uploadType"] == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1]
            _, about, data = self.body.split(f"--{boundary}".encode(), 2)
            name = json.loads(about.lstrip().partition(b"\n\n")[2])["name"]
            content = data.lstrip(b"\r\n").partition(b"\n\n")[2]
            return self._store(bucket, name, content.rpartition(f"\n--{boundary}--".encode())[0], condition)
        name = name or json.loads(self.body)["name"]
        session = str(next(self.server.generations))
        self.server.sessions[session] = (bucket, name, condition, b"")
        return 200, {}, {"Location": f"http://{self.headers['Host']}/upload/session?upload_id={session}"}

    def _upload_part(self, session: str):
        bucket, name, condition, data = self.server.sessions[session]
        start, total = re.fullmatch(r"bytes (\*|\d+-\d+)/(\d+|\*)", self.headers["Content-Range"]).groups()
        data = data + self.body if start == "*" else data[: int(start.partition("-")[0])] + self.body
        self.server.sessions[session] = (bucket, name, condition, data)
        if total == "*" or len(data) < int(total):
            return 308, b"", {"Range": f"bytes=0-{len(data) - 1}"}
        return self._store(bucket, name, data, condition)

    def _store(self, bucket: str, name: str, data: bytes, condition: str | None):
        objects = self.server.buckets[bucket]
        if condition is not None and int(condition) != objects.get(name, (b"", 0))[1]:
            return _failed_condition()
        objects[name] = (data, next(self.server.generations))
        return 200, _describe(bucket, name, *objects[name]), {}

    def _delete(self, path: str):
        match = _OBJECT.fullmatch(path)
        removed = self.server.buckets.get(match[1], {}).pop(unquote(match[2]), None)
        return (200, b"", {}) if removed is not None else _missing(path)


def _describe(bucket: str, name: str, data: bytes, generation: int) -> dict:
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{generation}",
        "name": name,
        "bucket": bucket,
        "size": str(len(data)),
        "generation": str(generation),
        "metageneration": "1",
        "timeCreated": "2026-11-27T00:00:00.000Z",
        "updated": "2026-11-27T00:00:00.000Z",
    }


def _missing(name: str):
    return 404, {"error": {"code": 404, "message": f"No such object or bucket: {name}"}}, {}


def _failed_condition():
    return 412, {"error": {"code": 412, "message": "A precondition does not hold"}}, {}
