"""Requests to object stores, by fsspec's gcsfs and s3fs: how they are configured, awaited, and how they fail."""

import asyncio
import errno
import functools
import importlib.util
import logging
import os
from collections.abc import Callable
from typing import Any

_REQUEST_S = 40
"""The longest time of one attempt: it moves megabytes at most."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "gs": {"use_listings_cache": False, "requests_timeout": _REQUEST_S},
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": _REQUEST_S,
            # Threads read many images at the same time; gcsfs has 100.
            "max_pool_connections": 128,
            # Attempts with growing pauses, also after 429 and 503.
            "retries": {"mode": "standard", "total_max_attempts": 8},
        },
    },
}
_PASSING = (408, 429, 500, 502, 503, 504)
"""Statuses of answers after which the same request may succeed."""
_DENIED = (
    "NoCredentialsError",
    "PartialCredentialsError",
    "DefaultCredentialsError",
    "ProfileNotFound",
)
_ENDPOINTS = {"gs": ("STORAGE_EMULATOR_HOST",), "s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")}
_NAMES_OF_LOGS = ("gcsfs", "s3fs", "fsspec", "aiobotocore", "google.auth", "asyncio")


class StoreError(OSError):
    """A request that failed after all attempts."""

    def __init__(self, reason: str, *, is_lasting: bool) -> None:
        super().__init__(errno.EIO, reason)
        self.is_lasting = is_lasting
        """Whether a later attempt would fail too: a wrong bucket, or credentials that do not suffice."""

    def __str__(self) -> str:
        return str(self.strerror)


def may_pass(error: BaseException) -> bool:
    """Whether a later attempt may succeed: a store does not answer, rather than refuses."""
    return isinstance(error, StoreError) and not error.is_lasting


def not_now(path: object, error: BaseException) -> StoreError:
    """What to raise if `path` was needed, and the error `may_pass`."""
    what = str(error) if str(error).startswith(str(path)) else f"{path} cannot be reached ({error})"
    reason = f"{what}: start the same command again when its store answers"
    return StoreError(reason, is_lasting=False)


def begin(scheme: str, deadline_s: float, operation: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
    """Begins a request; the result waits for its answer.

    Args:
        scheme: `gs` or `s3`.
        deadline_s: The longest time, with all attempts.
        operation: A coroutine of fsspec's file systems, with its arguments, of which the first is the URL, and options.

    Raises, when waiting: StoreError, FileNotFoundError, FileExistsError.
    """
    files = _files(scheme)
    # Cancelled at the deadline: a write must not arrive after a later one.
    request = asyncio.wait_for(getattr(files, operation)(*arguments, **options), deadline_s)
    future = asyncio.run_coroutine_threadsafe(request, files.loop)

    def wait() -> Any:
        try:
            return future.result()
        except (FileNotFoundError, FileExistsError):
            raise
        except TimeoutError:
            reason = f"{arguments[0]} has not answered for {deadline_s:g} s{_at_endpoint(scheme)}"
            raise StoreError(reason, is_lasting=False) from None
        except Exception as error:
            # There is no list of the errors of the two packages, and of the libraries below them.
            raise StoreError(_reason(error), is_lasting=_is_lasting(error)) from error

    return wait


@functools.cache
def _files(scheme: str) -> Any:
    """The file system of fsspec for a kind of store; Orbax gets the same one."""
    configure()
    import fsspec

    return fsspec.filesystem("gcs" if scheme == "gs" else scheme)


@functools.cache
def configure() -> None:
    """Sets what the libraries read when they are first used: deadlines, attempts, no caches, no tracebacks."""
    from fsspec.config import conf

    for scheme in _OPTIONS:
        conf[scheme] = {**_OPTIONS[scheme], **conf.get(scheme, {})}
    if importlib.util.find_spec("s3fs") is not None:
        import s3fs.core

        # Servers other than Amazon's may refuse with 429, which is not among the errors that are tried again.
        s3fs.core.set_custom_error_handler(lambda error: status_of(error) in _PASSING)
    # Without this, etils uses TensorFlow if that is installed.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Otherwise gcsfs asks another service for the kind of each bucket.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    for name in _NAMES_OF_LOGS:
        # They log tracebacks of errors that they also raise.
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _at_endpoint(scheme: str) -> str:
    """Where requests go, if the environment says so."""
    found = next((os.environ[name] for name in _ENDPOINTS[scheme] if os.environ.get(name)), None)
    return f" at {found}" if found else ""


def _reason(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:300] if words else type(error).__name__


def _is_lasting(error: BaseException) -> bool:
    status = status_of(error)
    is_refused = status is not None and 400 <= status < 500 and status not in _PASSING
    is_forbidden = isinstance(error, PermissionError) or str(error).startswith("Forbidden")
    return is_refused or is_forbidden or type(error).__name__ in _DENIED


def status_of(error: BaseException) -> int | None:
    """The status of the answer that caused an error of gcsfs or s3fs; None if there is none."""
    response = getattr(error, "response", None) or getattr(error.__cause__, "response", None)
    metadata = response.get("ResponseMetadata", {}) if isinstance(response, dict) else {}
    code = str(metadata.get("HTTPStatusCode", getattr(error, "code", None)))
    return int(code) if code.isdecimal() else None
