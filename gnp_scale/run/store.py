"""Object stores: paths such as `gs://bucket/run` and `s3://bucket/run`, with the few operations that a run needs.

fsspec (gcsfs, s3fs) makes the requests; Orbax uses the same through etils, so that both have one configuration. Objects
are written as a whole, and there is no rename. `create` is the only operation that decides between two writers.
"""

import errno
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gnp_scale.checks import check, local_path
from gnp_scale.run import store_requests
from gnp_scale.run.layout import CONFIG_FILE
from gnp_scale.run.store_requests import StoreError, may_pass, not_now

DEADLINE_S = 120.0
"""The longest time of one operation, with all of its attempts."""
_PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
_EXTRAS = {"gs": "gcs", "s3": "s3"}
_BEYOND_THE_END = 416
"""The status of a range that begins after the end of an object."""


@dataclass(frozen=True)
class StorePath:
    """An object, or all objects whose names begin with this path; like a `Path`, as far as a run needs it.

    All operations raise StoreError if the store fails, refuses, or does not answer within `deadline_s`.
    """

    url: str
    deadline_s: float = DEADLINE_S

    @property
    def scheme(self) -> str:
        """`gs` or `s3`."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """The last part."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> "StorePath":
        """The path without its last part."""
        return replace(self, url=self.url.rpartition("/")[0])

    def __truediv__(self, name: str) -> "StorePath":
        return replace(self, url=f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    def absolute(self) -> "StorePath":
        """This path."""
        return self

    def resolve(self) -> "StorePath":
        """This path: a store has no links."""
        return self

    def has_bucket(self) -> bool:
        """Whether there is a bucket, as far as this process may know it."""
        scheme, _, rest = self.url.partition("://")
        try:
            self._request("_info", f"{scheme}://{rest.partition('/')[0]}")
        except FileNotFoundError:
            return False
        except StoreError as error:
            if may_pass(error):
                raise
        return True

    def exists(self) -> bool:
        """Whether there is an object of this name."""
        return self._size_bytes() is not None

    def read_bytes(self, tail_bytes: int | None = None) -> bytes:
        """The object, or its last `tail_bytes`.

        Raises: FileNotFoundError: there is none.
        """
        if tail_bytes is None:
            return self._request("_cat_file", self.url)
        size_bytes = self._size_bytes()
        if size_bytes is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.url)
        if size_bytes <= tail_bytes:
            return self._request("_cat_file", self.url)
        return self._request("_cat_file", self.url, start=size_bytes - tail_bytes, end=size_bytes)

    def begin_read(self, start: int, num_bytes: int) -> Callable[[], bytes]:
        """Asks for `num_bytes` bytes from `start`; fewer if the object ends before. The result waits for them.

        Many reads may be under way at the same time. Raises, when waiting: FileNotFoundError: there is no object.
        """
        if num_bytes == 0:
            return lambda: b""
        wait = self._begin("_cat_file", self.url, start=start, end=start + num_bytes)

        def read() -> bytes:
            try:
                return wait()
            except FileNotFoundError:
                raise FileNotFoundError(errno.ENOENT, "no such object", self.url) from None
            except StoreError as error:
                if error.__cause__ is not None and store_requests.status_of(error.__cause__) == _BEYOND_THE_END:
                    return b""
                raise

        return read

    def read_text(self) -> str:
        """The object as text; raises what `read_bytes` raises."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        """Makes `data` the object; a reader sees the old or the new one."""
        self._request("_pipe_file", self.url, data)

    def write_text(self, text: str) -> None:
        """Makes `text` the object."""
        self.write_bytes(text.encode())

    def create(self, data: bytes) -> bool:
        """Writes the object unless there is one; returns whether `data` is the object now. The store decides.

        `data` must be different for each writer: an attempt may succeed although its answer is lost.
        """
        try:
            self._request("_pipe_file", self.url, data, mode="create")
        except FileExistsError:
            return self.read_bytes() == data
        return True

    def unlink(self, missing_ok: bool = False) -> None:
        """Deletes the object.

        Raises: FileNotFoundError: there is none, unless `missing_ok`.
        """
        try:
            self._request("_rm_file", self.url)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def names(self) -> list[str]:
        """The names right below this path; those of folders end with a slash. One request for 1000 names."""
        try:
            entries = self._request("_ls", self.url, detail=True)
        except FileNotFoundError:
            return []
        # Some programs put an empty object in the place of a folder.
        paths = [(entry["name"].rstrip("/"), entry["type"] == "directory") for entry in entries]
        own = self.url.partition("://")[2]
        return sorted(path.rpartition("/")[2] + "/" * is_folder for path, is_folder in paths if path != own)

    def rmtree(self) -> None:
        """Deletes all objects below this path, if there are any."""
        try:
            self._request("_rm", self.url, recursive=True)
        except FileNotFoundError:
            return

    def _size_bytes(self) -> int | None:
        try:
            info = self._request("_info", self.url)
        except FileNotFoundError:
            return None
        return None if info["type"] == "directory" else int(info["size"])

    def _request(self, operation: str, *arguments: Any, **options: Any) -> Any:
        return self._begin(operation, *arguments, **options)()

    def _begin(self, operation: str, *arguments: Any, **options: Any) -> Callable[[], Any]:
        return store_requests.begin(self.scheme, self.deadline_s, operation, *arguments, **options)


type Folder = Path | StorePath
"""A run folder."""


def run_folder(option: str, text: str) -> Folder:
    """The run folder that was given as `option`: a local path, `gs://bucket/path` or `s3://bucket/path`.

    Raises: ConfigError: it is neither, or the package for its store is missing.
    """
    return store_folder(option, text) if "://" in text else local_path(option, text)


def store_folder(option: str, text: str) -> StorePath:
    """The folder on a store that was given as `option`: `gs://bucket/path` or `s3://bucket/path`.

    Raises: ConfigError: it is none, or the package for its store is missing.
    """
    scheme, _, rest = text.partition("://")
    known = " or ".join(f"{name}://" for name in _PACKAGES)
    check(scheme in _PACKAGES, f"{option} is {text}: there are no such stores; give a path, {known}")
    parts = rest.rstrip("/").split("/")
    check(
        len(parts) > 1 and all(parts) and not {".", ".."} & set(parts) and not set("?#*[]") & set(rest),
        f"{option} is {text}: name a bucket and a folder in it, such as {scheme}://bucket/run, without ? # * [ ]",
    )
    check(rest.isprintable() and rest.isascii(), f"{option} is {text!a}: use printable ASCII characters")
    package = _PACKAGES[scheme]
    check(
        importlib.util.find_spec(package) is not None,
        f"{option} is {text}, but the package {package} is missing: pip install 'gnp-scale[{_EXTRAS[scheme]}]'",
    )
    return StorePath(f"{scheme}://{'/'.join(parts)}")


def why_no_run(folder: Folder) -> str:
    """Why a folder without a configuration holds no run."""
    if isinstance(folder, StorePath) and not folder.has_bucket():
        return "there is no such bucket"
    return f"it has no {CONFIG_FILE}"


def check_access(folder: Folder, name: str) -> str | None:
    """Writes and deletes an object `name`, to see whether this process may; returns the problem, if there is one.

    Raises: StoreError: the store does not answer; a later start may succeed.
    """
    if isinstance(folder, Path):
        return None
    try:
        (folder / name).write_bytes(b"")
        (folder / name).unlink(missing_ok=True)
    except FileNotFoundError:
        return f"{folder} cannot be a run folder: there is no such bucket; make it, or choose another --run-dir"
    except StoreError as error:
        if may_pass(error):
            raise not_now(folder, error) from error
        return f"{folder} cannot be a run folder ({error}): check the bucket, and the credentials in the environment"
    return None
