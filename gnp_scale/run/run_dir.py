"""The folder of a run: its configuration, `metrics.jsonl`, TensorBoard events and checkpoints."""

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax

from gnp_scale import recipe
from gnp_scale.config import Config, ConfigError, check
from gnp_scale.run.consensus import all_gather, broadcast, first_error
from gnp_scale.run.files import replace_file
from gnp_scale.run.folder_lock import FolderLock, moved
from gnp_scale.run.layout import CHECKPOINTS_FOLDER, CONFIG_FILE
from gnp_scale.run.lease import Lease
from gnp_scale.run.mirror import GrowingFiles, growing_files
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.store import Folder, StorePath, check_access, why_no_run
from gnp_scale.run.store_requests import StoreError, may_pass, not_now
from gnp_scale.run.streams import say

_TOKEN_FILE = "start"
_SIGHT_WAIT_S, _SIGHT_POLL_S = 90.0, 0.2
"""Clients of NFS may take a minute to see a new file."""

_FREE_TO_CHANGE = (
    *("mesh.", "checkpoint.", "divergence.", "train.kernels", "train.gather", "train.profile_steps"),
    *("data.root", "data.num_threads", "data.prefetch_steps", "data.max_damaged"),
)
"""Keys, or sections, that affect where and how a run computes, but not what."""


def check_reach(run_dir: Folder) -> None:
    """Confirms, before anything large is read or compiled, that every process may write into a folder on a store.

    Raises:
        ConfigError: one of them may not, or there is no such bucket.
        StoreError: the store does not answer.
    """
    problem = first_error(check_access(run_dir, f"probe-{jax.process_index()}"))
    if problem is not None:
        raise ConfigError(problem)


@contextlib.contextmanager
def claimed(run_dir: Folder, config: Config, on_lost: Callable[[str], object] = say) -> Iterator[GrowingFiles]:
    """Makes `run_dir` the folder of `config`, or confirms that it is; inside the block, no other start can use it.

    Every process must call it. If they do not all see the same folder, all raise. `on_lost(reason)` is called if
    the folder is moved or removed, or, on a store, if another start has taken it, because this process did not run, or
    not reach it, for a while.

    Raises:
        ConfigError: the folder holds a run with another configuration, or a run that is running now; or the processes
            see different folders.
        StoreError: the store does not answer.
    """
    token = secrets.token_hex(8)
    with contextlib.ExitStack() as stack:
        lock = Lease(run_dir, on_lost) if isinstance(run_dir, StorePath) else FolderLock(run_dir, on_lost)
        problem = _claim(run_dir, config, token, stack, lock) if is_main_process() else None
        problem = _agreed(run_dir, token, problem)
        if problem is not None:
            raise ConfigError(problem)
        files = stack.enter_context(growing_files(run_dir, jax.process_index(), is_writer=is_main_process()))
        if isinstance(lock, Lease) and is_main_process():
            files.is_ours, files.on_leave = lock.is_ours, lock.release
        if isinstance(lock, FolderLock):
            files.check_place, files.probe = partial(_check_place, lock), lock.probe
        yield files


def _check_place(lock: FolderLock) -> None:
    check(broadcast(not is_main_process() or lock.is_in_place()), moved(lock.folder))


def _claim(
    run_dir: Folder, config: Config, token: str, stack: contextlib.ExitStack, lock: Lease | FolderLock
) -> str | None:
    """Claims the folder while `stack` is open, and writes a `token` into it; returns the problem, if there is one."""
    try:
        _check_same_run(run_dir, config)
        stack.enter_context(lock)
        # Another run may have begun here, and ended, while this one waited.
        _check_same_run(run_dir, config)
        _check_takes_checkpoints(run_dir)
        text = recipe.to_json(config)
        # An unchanged file is not written, so it needs no free space.
        if not (run_dir / CONFIG_FILE).exists() or (run_dir / CONFIG_FILE).read_text() != text:
            replace_file(run_dir / CONFIG_FILE, text.encode())
        if jax.process_count() > 1:
            (run_dir / _TOKEN_FILE).write_text(token)
    except ConfigError as error:
        return str(error)
    except OSError as error:
        if may_pass(error):
            raise not_now(run_dir, error) from error
        return f"{run_dir} cannot be a run folder ({error}): make it writable, with room, or choose another --run-dir"
    return None


def _agreed(run_dir: Folder, token: str, problem: str | None) -> str | None:
    """The `problem` of process 0, or that another process does not see its `token`; the same in all processes."""
    if jax.process_count() == 1:
        return problem
    file = run_dir / _TOKEN_FILE
    mine = f"{run_dir.absolute()} on {socket.gethostname()}"
    problem, token, main = broadcast((problem, token, mine))
    if problem is not None:
        return problem
    others = all_gather(None if _comes_to_hold(file, token) else mine)
    if is_main_process():
        file.unlink(missing_ok=True)
    return next(
        (
            f"process {rank} has another run folder, {other}, than process 0, {main}: give all the same --run-dir, on "
            "a file system that they share"
            for rank, other in enumerate(others)
            if other is not None
        ),
        None,
    )


def _comes_to_hold(file: Path | StorePath, token: str) -> bool:
    deadline_s = time.monotonic() + _SIGHT_WAIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError):
            if file.read_text() == token:
                return True
        time.sleep(_SIGHT_POLL_S)
    return False


def _check_takes_checkpoints(run_dir: Folder) -> None:
    """Raises ConfigError if no checkpoint could be written, which only the first save would notice."""
    folder = run_dir / CHECKPOINTS_FOLDER
    if isinstance(folder, Path) and os.path.lexists(folder):
        is_usable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        check(is_usable, f"{folder} is no folder that can be written to: make it one, or choose another --run-dir")


def _check_same_run(run_dir: Folder, config: Config) -> None:
    if (run_dir / CONFIG_FILE).exists():
        changed = changes(stored_config(run_dir), config)
        if changed:
            raise ConfigError(
                f"{run_dir} holds a run with another configuration ({', '.join(changed)}): choose another --run-dir"
            )


def changes(old: Config, new: Config) -> list[str]:
    """The changes that make `new` another run than `old`, as `key old -> new`; empty if it is the same run."""
    before, after = recipe.flatten(old), recipe.flatten(new)
    return [
        f"{key} {before[key]} -> {after[key]}"
        for key in after
        if after[key] != before[key] and not key.startswith(_FREE_TO_CHANGE)
    ]


def stored_config(run_dir: Folder) -> Config:
    """The configuration of the run in `run_dir`.

    Raises:
        ConfigError: it holds no run, or a configuration that this version cannot read.
    """
    path = run_dir / CONFIG_FILE
    try:
        return recipe.from_json(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise ConfigError(f"{run_dir} holds no run ({why_no_run(run_dir)}): give the folder of a run") from None
    except StoreError as error:
        if may_pass(error):
            raise not_now(path, error) from error
        raise ConfigError(f"{path} cannot be read ({error}): check the credentials in the environment") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore it from a copy, or begin a new run") from error
