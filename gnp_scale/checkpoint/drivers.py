"""TensorStore's drivers for object stores, for Orbax, which makes their specifications without limits, and none of S3.

The function that makes them has no option for this, so it is replaced.
"""

import functools
import os
from typing import Any
from urllib.parse import urlsplit

from orbax.checkpoint._src.serialization import tensorstore_utils

from gnp_scale.run import store_requests

_RETRIES = {"max_retries": 8, "initial_delay": "500ms", "max_delay": "16s"}
"""After 429, 503 and broken connections: pauses of 60 s in all."""
_ENVIRONMENT = {
    "TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS": "10",
    # An attempt that moves less than a byte a second for so long has failed.
    "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "30",
    "TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES": "1",
}


@functools.cache
def install() -> None:
    """Makes Orbax use these drivers for gs:// and s3://. Call it before the first request of TensorStore."""
    store_requests.configure()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "STORAGE_EMULATOR_HOST" in os.environ:
        os.environ.setdefault("TENSORSTORE_GCS_HTTP_URL", os.environ["STORAGE_EMULATOR_HOST"])
    make = tensorstore_utils.build_kvstore_tspec

    def build_kvstore_tspec(directory: str, *arguments: Any, **options: Any) -> Any:
        url = urlsplit(directory)
        if url.scheme not in ("gs", "s3"):
            return make(directory, *arguments, **options)
        spec = make(f"gs://{url.netloc}{url.path}", *arguments, **options)
        return _with_driver(spec, _gcs_driver if url.scheme == "gs" else _s3_driver)

    tensorstore_utils.build_kvstore_tspec = build_kvstore_tspec


def _with_driver(spec: Any, driver: Any) -> Any:
    """`spec` with every driver of GCS in it replaced."""
    if isinstance(spec, list):
        return [_with_driver(part, driver) for part in spec]
    if not isinstance(spec, dict):
        return spec
    if spec.get("driver") == "gcs":
        return driver(spec)
    return {key: _with_driver(part, driver) for key, part in spec.items()}


def _gcs_driver(spec: dict[str, Any]) -> dict[str, Any]:
    return {**spec, "gcs_request_retries": _RETRIES}


def _s3_driver(spec: dict[str, Any]) -> dict[str, Any]:
    """The driver of S3, with the settings that AWS's own programs take from the environment."""
    variables = os.environ
    endpoint = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    region = variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION")
    # Without a kind, TensorStore looks for files and servers first, and logs each that is missing.
    kind = {"type": "environment"} if variables.get("AWS_ACCESS_KEY_ID") else None
    settings = {"endpoint": endpoint, "aws_region": region, "aws_credentials": kind, "s3_request_retries": _RETRIES}
    return {**spec, "driver": "s3", **{key: value for key, value in settings.items() if value}}
