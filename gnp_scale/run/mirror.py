"""The files of a run that grow: metrics, events, the record of its time, stacks.

On a file system they are in the run folder itself. Objects on a store cannot grow: there, a process writes its files
into a temporary local folder, and a thread copies what has changed to the store, as whole objects.
"""

import contextlib
import fnmatch
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gnp_scale import PROCESS_START_S
from gnp_scale.run.files import NEW_SUFFIX, Outage
from gnp_scale.run.layout import EVENTS_PATTERN, GOODPUT_FILE, METRICS_FILE, STACKS_FILE
from gnp_scale.run.recorder import append_interval_s
from gnp_scale.run.store import Folder, StorePath
from gnp_scale.run.streams import say

_SHORTEST_INTERVAL_S = 10.0
_MOST_OF_TIME = 0.05
"""The thread spends at most this part of the time in copying."""
_LAST_COPY_S = 15.0
"""How long a process that ends at once waits for its last copy."""


class GrowingFiles:
    """The growing files of a run, in the local folder `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.on_leave: Callable[[], object] = lambda: None
        """The last act of `leave`."""
        self.is_ours: Callable[[], bool] = lambda: True
        """Whether this process may still write into the run folder; asked before each `publish`."""
        self.check_place: Callable[[], None] = lambda: None
        """Raises ConfigError in all processes if the run folder was moved; called by all."""
        self.probe: Callable[[], None] = lambda: None
        """Raises FileNotFoundError in that case; called by the main process."""

    def publish(self) -> None:
        """Waits until the run folder has what was written into `folder`, unless its store fails."""

    def leave(self) -> None:
        """`publish`, for at most a few seconds, in a process that ends at once."""


@contextlib.contextmanager
def growing_files(run_dir: Folder, rank: int, *, is_writer: bool) -> Iterator[GrowingFiles]:
    """The growing files of `run_dir`, for the process `rank`; only `is_writer` continues those of earlier starts.

    Raises: StoreError: they cannot be read.
    """
    if isinstance(run_dir, Path):
        yield GrowingFiles(run_dir)
        return
    files = _Mirror(run_dir, Path(tempfile.mkdtemp(prefix="gnp-scale-")))
    stacks = STACKS_FILE.format(rank=rank)
    files.fetch((METRICS_FILE + "*", GOODPUT_FILE, EVENTS_PATTERN, stacks) if is_writer else (stacks,))
    with files.kept_alike():
        yield files


class _Mirror(GrowingFiles):
    def __init__(self, store: StorePath, folder: Path) -> None:
        super().__init__(folder)
        self._store = store
        self._outage = Outage(store, "what is new is kept on this machine until then")
        self._copied: dict[str, tuple[int, int]] = {}
        """Size and time of change of the files that the store has."""
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._last_copy_s = 0.0

    def fetch(self, patterns: tuple[str, ...]) -> None:
        """Gets the files of earlier starts whose names match."""
        for name in self._store.names():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                file = self.folder / name
                # Events of earlier starts do not change: their names are enough.
                is_event_file = fnmatch.fnmatchcase(name, EVENTS_PATTERN)
                file.write_bytes(b"" if is_event_file else (self._store / name).read_bytes())
                self._copied[name] = _stamp(file)

    @contextlib.contextmanager
    def kept_alike(self) -> Iterator[None]:
        """Copies in the background inside the block, and once more at its end."""
        thread = threading.Thread(target=self._keep_publishing, name="mirror", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()
            self.publish()
            if self._outage.reason is None:
                shutil.rmtree(self.folder, ignore_errors=True)
            else:
                say(f"{self._store} lacks the last lines ({self._outage.reason}): they are in {self.folder}")

    def publish(self) -> None:
        with self._lock:
            began_s = time.monotonic()
            try:
                if self.is_ours():
                    self._copy()
            except OSError as error:
                self._outage.begin(error)
            else:
                self._outage.end("nothing is lost")
            self._last_copy_s = time.monotonic() - began_s

    def leave(self) -> None:
        thread = threading.Thread(target=lambda: (self.publish(), self.on_leave()), daemon=True)
        thread.start()
        thread.join(_LAST_COPY_S)

    def _copy(self) -> None:
        for file in sorted(self.folder.iterdir()):
            if file.suffix == NEW_SUFFIX:
                continue
            stamp = _stamp(file)
            if self._copied.get(file.name) != stamp:
                data = file.read_bytes()
                # A line may be half written.
                whole = data[: data.rfind(b"\n") + 1] if file.suffix == ".jsonl" else data
                (self._store / file.name).write_bytes(whole)
                self._copied[file.name] = stamp

    def _keep_publishing(self) -> None:
        while not self._ended.wait(self._interval_s()):
            self.publish()

    def _interval_s(self) -> float:
        age_s = time.perf_counter() - PROCESS_START_S
        return max(_SHORTEST_INTERVAL_S, append_interval_s(age_s), self._last_copy_s / _MOST_OF_TIME)


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
