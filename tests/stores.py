"""Local servers of S3 (moto's) and of Google Cloud Storage, each behind a proxy that can disturb it."""

import importlib.util
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest
from gcs_server import GcsServer
from store_proxy import Proxy

from gnp_scale.run.store import StorePath

BUCKET = "bucket"
_NEEDED = {"gs": ("gcsfs",), "s3": ("s3fs", "moto")}
_START_S = 60.0
_numbers = count(1)


@dataclass(frozen=True)
class LocalStore:
    """A running store with an empty bucket, which the environment of this process names."""

    scheme: str
    proxy: Proxy
    server: GcsServer | None
    """In this process, for gs."""

    @property
    def write_method(self) -> str:
        """The method of HTTP that writes an object."""
        return "POST" if self.scheme == "gs" else "PUT"

    def folder(self) -> StorePath:
        """A folder that no other test uses."""
        return StorePath(f"{self.scheme}://{BUCKET}/test{next(_numbers)}/run")


def skip_without_packages(scheme: str) -> None:
    """Skips the test that calls it if an optional package for the store is missing."""
    missing = [name for name in _NEEDED[scheme] if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{' and '.join(missing)} is not installed: make optional")


def local_stores() -> Iterator[dict[str, LocalStore]]:
    """The stores whose packages are installed."""
    stores: dict[str, LocalStore] = {}
    variables = dict(os.environ)
    moto = None
    if importlib.util.find_spec("gcsfs") is not None:
        server = GcsServer(BUCKET)
        stores["gs"] = LocalStore("gs", Proxy(server.url), server)
        os.environ |= dict.fromkeys(("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"), stores["gs"].proxy.url)
    if all(importlib.util.find_spec(name) is not None for name in _NEEDED["s3"]):
        moto, url = _start_moto()
        stores["s3"] = LocalStore("s3", Proxy(url), None)
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
        os.environ |= keys | {"AWS_ENDPOINT_URL": stores["s3"].proxy.url}
    forget_connections()
    yield stores
    os.environ.clear()
    os.environ |= variables
    forget_connections()
    if moto is not None:
        moto.communicate()


def _start_moto() -> tuple[subprocess.Popen[bytes], str]:
    """A server of its own process: moto is for tests, and not strict about warnings."""
    code = (
        "from moto.moto_server.werkzeug_app import MotoRequestHandler as Handler, create_backend_app\n"
        "from werkzeug.serving import make_server; import sys, threading\n"
        "Handler.wbufsize, Handler.log_request = 1 << 16, lambda *arguments, **options: None\n"
        "server = make_server('127.0.0.1', 0, create_backend_app('s3'), threaded=True, request_handler=Handler)\n"
        "threading.Thread(target=server.serve_forever, daemon=True).start()\n"
        "print(server.port, flush=True)\n"
        "sys.stdin.read()"  # It ends with the process of the tests, however that ends.
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout as output:
        url = f"http://127.0.0.1:{int(output.readline())}"
    deadline_s = time.monotonic() + _START_S
    while True:
        try:
            urllib.request.urlopen(urllib.request.Request(f"{url}/{BUCKET}", method="PUT")).read()
        except OSError:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
        else:
            return process, url


def forget_connections() -> None:
    """The libraries keep file systems with the addresses of the environment at their first use."""
    from etils.epath.backend import fsspec_backend

    from gnp_scale.run import store_requests

    type(fsspec_backend)._get_filesystem.cache_clear()
    store_requests._files.cache_clear()
    if "gcsfs" in sys.modules or "s3fs" in sys.modules:
        import fsspec

        for scheme in ("gcs", "s3"):
            fsspec.get_filesystem_class(scheme).clear_instance_cache()
