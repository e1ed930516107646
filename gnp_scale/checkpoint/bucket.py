"""The checkpoints of a run folder on an object store, where nothing can be renamed.

Orbax writes a step into a folder of its own, `STEP.TOKEN/`. Everything else is said by empty objects beside it:

* `STEP.TOKEN.committed`, created after all processes have written: a step is complete or absent;
* `STEP.TOKEN.good`;
* `STEP.TOKEN.damaged`, `STEP.TOKEN.rolled-back` or `STEP.TOKEN.deleted`: it is no longer a checkpoint.

So one list of names shows the state of all, and each change of it is one request.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp
from orbax.checkpoint.options import AtomicityMode

from gnp_scale.checkpoint import drivers
from gnp_scale.checkpoint.metadata import DamagedError, Metadata
from gnp_scale.checkpoint.store import Store, Write
from gnp_scale.run.consensus import broadcast
from gnp_scale.run.layout import COMMITTED_MARK, DELETED_MARK, GOOD_MARK, committed_folders
from gnp_scale.run.messages import announce
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.store import Folder, StorePath
from gnp_scale.run.store_requests import StoreError
from gnp_scale.run.streams import one_line

_PATIENCE_S = 20.0
"""Training waits so long for a store before a write of a checkpoint counts as failed."""


def open_store(run_dir: Folder) -> Store:
    """The checkpoints in a run folder."""
    return Store(run_dir) if isinstance(run_dir, Path) else Bucket(run_dir)


class Bucket(Store):
    """The checkpoints of a run folder on an object store; see `Store`."""

    folder: StorePath

    def __init__(self, run_dir: StorePath) -> None:
        drivers.install()
        super().__init__(run_dir)
        self._is_down = False
        """Whether the store has failed in the background: then the rest of that work is left to the next start."""
        self._descriptions: dict[StorePath, Any] = {}

    def steps(self) -> list[int]:
        """The steps that are committed and not set aside, in order. Raises: StoreError."""
        return sorted(self._folders())

    def good_steps(self) -> list[int]:
        """The steps that are marked as good, in order. Raises: StoreError."""
        names = self.folder.names()
        return sorted(step for step, name in committed_folders(names).items() if f"{name}.{GOOD_MARK}" in names)

    def mark_good(self, step: int) -> None:
        """Marks a step as good in the background. If the store fails, it must pass the gate again after a restart."""
        if is_main_process():
            self._behind(lambda: self._mark(self._folders()[step], GOOD_MARK))

    def prepare(self, step: int) -> None:
        """Removes the remains of earlier writes of `step`, and checks that this process can write here.

        Raises:
            OSError: it cannot write.
        """
        self.clear_unfinished(step)
        probe = StorePath(self.folder.url, _PATIENCE_S) / f"probe-{jax.process_index()}"
        probe.write_bytes(b"")
        probe.unlink(missing_ok=True)

    def write(self, step: int, state: Any, metadata: Metadata) -> Write:
        """Starts to write a step. Every process calls it, with its shards of the same global arrays."""
        name = f"{step}.{broadcast(secrets.token_hex(4))}"
        context = ocp.Context()
        context.file_options.skip_sync_file_validations = True
        context.atomicity.mode = AtomicityMode.COMMIT_FILE
        commit = (lambda: self._mark(name, COMMITTED_MARK)) if is_main_process() else (lambda: None)
        with context:
            try:
                response = ocp.save_async(str(self.folder / name), state, custom_metadata=metadata)
            except Exception as error:
                # The libraries below Orbax have no common error; here the others must learn of each.
                response = _Failed(error)
        return Write(_Response(response), commit)

    def quarantine(self, step: int, word: str) -> str:
        """Sets a step aside, so that it is no longer read or deleted; returns the name of the mark.

        Raises:
            OSError: the store refuses.
        """
        name = broadcast(self._folders()[step] if is_main_process() else "")
        if is_main_process():
            self._mark(name, word)
        return f"{name}.{word}"

    def delete(self, step: int) -> None:
        """Deletes a step in the background. If the store refuses, the step stays."""
        if is_main_process():
            self._behind(lambda: self._delete(self._folders()[step]))

    def clear_unfinished(self, step: int) -> None:
        """Removes in the background what a failed write of `step` has left.

        Raises:
            OSError: the store refuses.
        """
        if is_main_process():
            self._clear(lambda name: name.startswith(f"{step}."))

    def delete_leftovers(self) -> None:
        """Deletes in the background what killed writes and deletions have left. Only one run at a time writes here."""
        if is_main_process():
            self._clear(lambda name: True)

    def _clear(self, is_due: Callable[[str], bool]) -> None:
        names = StorePath(self.folder.url, _PATIENCE_S).names()
        folders = {name.removesuffix("/") for name in names if name.endswith("/")}
        marked = {name.removesuffix(f".{DELETED_MARK}") for name in names if name.endswith(f".{DELETED_MARK}")}
        for name in folders | marked:
            if is_due(name) and (name in marked or f"{name}.{COMMITTED_MARK}" not in names):
                self._behind(lambda name=name: self._delete(name))

    def _delete(self, name: str) -> None:
        """Deletes the folder `name` and its marks; the first and the last request leave it deleted after a kill."""
        self._mark(name, DELETED_MARK)
        (self.folder / name).rmtree()
        for word in (COMMITTED_MARK, GOOD_MARK, DELETED_MARK):
            (self.folder / f"{name}.{word}").unlink(missing_ok=True)

    def _mark(self, name: str, word: str) -> None:
        (self.folder / f"{name}.{word}").write_bytes(b"")

    def _behind(self, act: Callable[[], object]) -> None:
        def attempt() -> None:
            if self._is_down:
                return
            try:
                act()
            except (OSError, KeyError) as error:
                self._is_down = isinstance(error, StoreError)
                announce(f"{self.folder} could not be tidied ({error}): the next start does it")

        self._deletions.submit(attempt)

    def _orbax_metadata(self, step: int) -> Any:
        # It takes tens of requests, and never changes.
        path = self._path(step)
        if path not in self._descriptions:
            self._descriptions[path] = super()._orbax_metadata(step)
        return self._descriptions[path]

    def _folders(self) -> dict[int, str]:
        return committed_folders(self.folder.names())

    def _path(self, step: int) -> StorePath:
        name = self._folders().get(step)
        if name is None:
            raise DamagedError("it is no longer there")
        return self.folder / name


class _Response:
    """The response of a write, whose errors are those of a store."""

    def __init__(self, response: Any) -> None:
        self._response = response

    def result(self) -> None:
        try:
            self._response.result()
        except (StoreError, FileNotFoundError):
            raise
        except Exception as error:
            # Whether it may pass is not said. `prepare` has just written to this store.
            raise StoreError(one_line(error), is_lasting=False) from error


class _Failed:
    """The response of a write that could not begin."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def result(self) -> None:
        raise self._error
