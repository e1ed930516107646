"""The lock of a run folder on a file system. The kernel releases it whenever the process of its owner ends."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from gnp_scale.config import ConfigError
from gnp_scale.run.files import wait_for_lock
from gnp_scale.run.layout import LOCK_FILE

_WAIT_S = 15.0
"""A start may begin before the previous one has fully ended."""
LOOK_S = 10.0
"""Between two looks at the folder."""


def moved(folder: Path) -> str:
    """The error of a run whose `folder` is gone."""
    return f"{folder} was moved or removed while its run was training: to go on, give its name of now as --run-dir"


class FolderLock:
    """Makes `folder`. While it is entered, this process owns it; `on_lost(reason)` is called if it is moved or removed.

    Raises:
        ConfigError: the folder is in use.
        OSError: the folder or the lock cannot be written.
    """

    def __init__(self, folder: Path, on_lost: Callable[[str], object]) -> None:
        self.folder, self._on_lost = folder, on_lost
        self._owner = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        self._open = contextlib.ExitStack()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as until_it_is_ours:
            self._take(until_it_is_ours.enter_context((self.folder / LOCK_FILE).open("a+")).fileno())
            # While it is open, no other folder gets its number.
            self._opened = os.open(self.folder, os.O_RDONLY)
            until_it_is_ours.callback(os.close, self._opened)
            self._open = until_it_is_ours.pop_all()
        threading.Thread(target=self._watch, name="folder lock", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._open.close()

    def _take(self, file: int) -> None:
        """Takes the lock, and writes its owner into the file."""
        if not wait_for_lock(file, _WAIT_S):
            owner = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
            raise ConfigError(f"{self.folder} is in use by {owner}: wait for its end, or choose another --run-dir")
        os.ftruncate(file, 0)
        # The name is only for messages and `is_in_place`: on a full disk it may be missing.
        with contextlib.suppress(OSError):
            os.write(file, self._owner)

    def _watch(self) -> None:
        num_misses = 0
        while not self._ended.wait(LOOK_S):
            num_misses = 0 if self.is_in_place() else num_misses + 1
            # A folder that is put back at once has lost nothing.
            if num_misses == 2:
                self._on_lost(moved(self.folder))
                return

    def probe(self) -> None:
        """Raises FileNotFoundError if the folder of this run has lost its name."""
        if not self.is_in_place():
            raise FileNotFoundError(moved(self.folder))

    def is_in_place(self) -> bool:
        """Whether the folder of this run still has its name."""
        try:
            # Some file systems give a folder another number now and then.
            is_same = os.path.samestat(os.fstat(self._opened), self.folder.stat())
            return is_same or (self.folder / LOCK_FILE).read_bytes() == self._owner
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            # A file system that does not answer for a while has lost nothing.
            return True
