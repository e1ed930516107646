"""The lock of a run folder on an object store: a lease that its owner renews.

The object `lock.N` with the highest N is the lock. Whoever creates the next one, which only one can, owns the folder;
nobody else writes that object. An owner that ends writes into it that the folder is free. One that was killed stops
renewing it; on the machine of the owner, its end is noticed at once.
"""

import contextlib
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gnp_scale.config import ConfigError
from gnp_scale.run.awake import AwakeClock, boot_s
from gnp_scale.run.layout import LOCK_FILE
from gnp_scale.run.store import StorePath

BEAT_S = 10.0
"""Between two renewals."""
EXPIRY_S = 45.0
"""After this time without a renewal, another process may take the lock."""
_WAIT_S = 15.0
"""A start may begin before the previous one has fully ended. Longer than a beat, to see one."""
_POLL_S = 1.0
_LAST_BEAT_S = 5.0
"""How long a release waits for a renewal that is on its way."""


class Lease:
    """While it is entered, this process owns `folder`; `on_lost(reason)` is called if another one has taken it.

    Raises:
        ConfigError: the folder is in use.
        StoreError: the store fails.
    """

    def __init__(self, folder: StorePath, on_lost: Callable[[str], object]) -> None:
        self._folder, self._on_lost = folder, on_lost
        self._number, self._beat = 0, 0
        self._is_lost, self._checked_s = False, 0.0
        self._owner = {
            "name": f"process {os.getpid()} on {socket.gethostname()}",
            "token": secrets.token_hex(8),
            "machine": _machine(),
            "pid": os.getpid(),
            "born": _born(os.getpid()),
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """Frees the folder. If the store fails, the lease expires."""
        if self._ended.is_set():
            return
        self._ended.set()
        if self._thread.ident is not None and threading.current_thread() is not self._thread:
            self._thread.join(_LAST_BEAT_S)
        with contextlib.suppress(OSError):
            if self._newest()[0] == self._number:
                self._object(self._number).write_bytes(self._record(is_free=True))

    def _take(self) -> None:
        # A pause of this process says nothing about the owner: a machine pauses both.
        clock = AwakeClock(_POLL_S)
        began_s = seen_s = clock.now_s()
        last, num_changes = None, 0
        while True:
            number, owner = self._newest()
            now_s = clock.now_s()
            if owner != last:
                last, seen_s, num_changes = owner, now_s, num_changes + 1
            is_expired = now_s - seen_s > EXPIRY_S
            if (owner is None or is_expired or _is_gone(owner)) and self._create(number + 1):
                return
            # The first content counts as a change.
            if owner is not None and num_changes > 1 and now_s - began_s > _WAIT_S:
                raise ConfigError(
                    f"{self._folder} is in use by {owner.get('name', 'another process')}: wait for its end, or choose "
                    "another --run-dir"
                )
            time.sleep(_POLL_S)

    def _create(self, number: int) -> bool:
        if not self._object(number).create(self._record()):
            return False
        numbers = self._numbers()
        if max(numbers, default=0) > number:
            # While this process paused, two others took the folder, and the second one removed this number.
            self._object(number).unlink(missing_ok=True)
            return False
        self._number, self._checked_s = number, boot_s()
        for old in numbers:
            if old < number:
                self._object(old).unlink(missing_ok=True)
        return True

    def is_ours(self) -> bool:
        """Whether no other process has taken the folder, according to a request at most two beats ago.

        Raises: StoreError: the store fails.
        """
        if not self._is_lost and boot_s() - self._checked_s > 2 * BEAT_S:
            self._check()
        return not self._is_lost

    def _check(self) -> None:
        began_s = boot_s()
        if max(self._numbers(), default=0) > self._number:
            self._is_lost = True
        self._checked_s = began_s

    def _keep(self) -> None:
        while not self._ended.wait(BEAT_S):
            # While the store fails, this process cannot write into the folder either.
            with contextlib.suppress(OSError):
                self._check()
                if self._is_lost:
                    self._on_lost(f"another start has taken {self._folder}, which was not renewed for {EXPIRY_S:g} s")
                    return
                self._beat += 1
                self._object(self._number).write_bytes(self._record())

    def _newest(self) -> tuple[int, dict[str, Any] | None]:
        """The number of the lock, and its owner; no owner if the folder is free."""
        number = max(self._numbers(), default=0)
        if number == 0:
            return 0, None
        try:
            owner = json.loads(self._object(number).read_bytes())
        except FileNotFoundError:
            return number, None
        except ValueError:
            owner = None
        if not isinstance(owner, dict):
            return number, {}  # Damaged: it counts as an owner that does not renew it.
        return number, None if owner.get("is_free") else owner

    def _numbers(self) -> list[int]:
        words = [name.partition(f"{LOCK_FILE}.")[2] for name in self._folder.names() if name.startswith(LOCK_FILE)]
        return [int(word) for word in words if word.isdecimal()]

    def _object(self, number: int) -> StorePath:
        return self._folder / f"{LOCK_FILE}.{number}"

    def _record(self, *, is_free: bool = False) -> bytes:
        return json.dumps({**self._owner, "beat": self._beat, "is_free": is_free}).encode()


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether the owner was a process of this machine (and container) that has ended."""
    machine = _machine()
    return machine is not None and owner.get("machine") == machine and _born(owner["pid"]) != owner["born"]


def _machine() -> str | None:
    """The running system and the name space of its process numbers; None where Linux does not tell them."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def _born(pid: int) -> str | None:
    """When a process began, in ticks since the boot; None if there is no such process."""
    try:
        # The name of the command, in parentheses, may contain spaces. A zombie has ended.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
