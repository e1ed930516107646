"""A proxy in front of a store that disturbs chosen requests: refusals, cut connections, silence.

`proxy.disturb(fault, number, part)` disturbs the next `number` requests whose line, such as `PUT /bucket/name?query`,
contains `part`. Lines are unquoted.
"""

import http.client
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

type Fault = Callable[["_Handler"], None]
_HOP_BY_HOP = ("connection", "transfer-encoding", "content-length", "date", "server")


def refuse(status: int) -> Fault:
    """Answers with `status`, without asking the store."""
    return lambda handler: handler.answer(status, {"Retry-After": "0"}, b"<Error><Code>Refused</Code></Error>")


def cut(handler: "_Handler") -> None:
    """Asks the store, and cuts the connection in the middle of the answer: whatever was asked for is done."""
    status, headers, body = handler.ask()
    handler.answer(status, headers, body, cut_at=len(body) // 2)


def drop(handler: "_Handler") -> None:
    """Cuts the connection without asking the store."""
    handler.close_connection = True


def delay(seconds: float) -> Fault:
    """Asks the store after some time."""

    def act(handler: "_Handler") -> None:
        time.sleep(seconds)
        handler.answer(*handler.ask())

    return act


class Proxy(ThreadingHTTPServer):
    """A proxy of the store at `target`; `url` is its own address."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(target).netloc
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lines: list[str] = []
        """The request lines since the last `calm`."""
        self._lock = threading.Lock()
        self._faults: list[tuple[Fault, int, str]] = []
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def disturb(self, fault: Fault, number: int = 1, part: str = "") -> None:
        """Disturbs the next `number` requests with `part` in their line."""
        self._faults.append((fault, number, part))

    def calm(self) -> None:
        """Ends all faults."""
        with self._lock:
            self._faults, self.lines = [], []

    def fault(self, line: str) -> Fault | None:
        """The fault of the request with this line, which counts as one."""
        with self._lock:
            self.lines.append(line)
            for place, (fault, number, part) in enumerate(self._faults):
                if number and part in line:
                    self._faults[place] = (fault, number - 1, part)
                    return fault
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """A client or a store that goes away is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version, wbufsize = "HTTP/1.1", 1 << 16
    server: Proxy

    def log_message(self, *arguments: object) -> None:
        return

    def do_GET(self) -> None:
        self._handle()

    def do_HEAD(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_DELETE(self) -> None:
        self._handle()

    def _handle(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.wfile.flush()
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.body = self._read_chunks()
        fault = self.server.fault(unquote(f"{self.command} {self.path}"))
        if fault is None:
            self.answer(*self.ask())
        else:
            fault(self)

    def _read_chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def ask(self) -> tuple[int, dict[str, str], bytes]:
        """The answer of the store."""
        connection = http.client.HTTPConnection(self.server.target, timeout=60)
        headers = {name: value for name, value in self.headers.items() if name.lower() != "transfer-encoding"}
        connection.request(self.command, self.path, self.body, headers | {"Content-Length": str(len(self.body))})
        response = connection.getresponse()
        body = response.read()
        kept = {name: value for name, value in response.getheaders() if name.lower() not in _HOP_BY_HOP}
        if self.command == "HEAD":
            kept["Content-Length"] = response.getheader("Content-Length", "0")
        connection.close()
        return response.status, kept, body

    def answer(self, status: int, headers: dict[str, str], body: bytes, cut_at: int | None = None) -> None:
        """Sends an answer, or only the first bytes of its body."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:cut_at] if self.command != "HEAD" else b"")
        self.close_connection = self.close_connection or cut_at is not None
