"""One command at a time trains the runs of a method, or removes them."""

import contextlib
import os
from collections.abc import Iterator

from gnp_scale.config import ConfigError, check
from gnp_scale.evidence.row import Row
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.files import wait_for_lock
from gnp_scale.run.processes import is_main_process
from gnp_scale.sweeps.queue import is_in_use, open_log

_STDOUT = 1
_WAIT_S = 15.0
"""A start may begin before the previous one has fully ended."""


@contextlib.contextmanager
def claimed(row: Row, wait_s: float = _WAIT_S) -> Iterator[None]:
    """Inside the block, no other command trains the runs of `row`, or removes them.

    The lock is that of the method's log, by which a queue knows that a method is being trained. A process that a queue
    has started writes into that log, and has inherited the lock.

    Raises:
        ConfigError: another command has them, after `wait_s`; or the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            log = stack.enter_context(open_log(row.folder, row.name)).fileno()
            file = _STDOUT if os.path.sameopenfile(_STDOUT, log) else log
            is_free = wait_for_lock(file, wait_s) and not any(map(is_in_use, (row.folder / row.name).glob("*")))
        except OSError as error:
            raise ConfigError(
                f"{row.folder} cannot be written ({error}): make it writable, or choose another --out"
            ) from error
        check(is_free, f"{row.name} is being trained by another process: wait for its end, or stop it")
        yield


@contextlib.contextmanager
def claimed_by_all(row: Row) -> Iterator[None]:
    """The same for processes that train together; every one of them must call it.

    Raises:
        ConfigError: as `claimed`, in all of them.
    """
    with contextlib.ExitStack() as stack:
        problem = None
        if is_main_process():
            try:
                stack.enter_context(claimed(row))
            except ConfigError as error:
                problem = str(error)
        problem = broadcast(problem)
        if problem is not None:
            raise ConfigError(problem)
        yield
