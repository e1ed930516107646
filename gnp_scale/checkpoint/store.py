"""The folder of checkpoints, one subfolder a step. This file, `bucket.py` and `drivers.py` alone use Orbax.

Orbax writes a step into a folder of another name, writes a marker as the last file, and renames the folder: a step is
complete or absent, unless the store loses something afterwards.
"""

import contextlib
import itertools
import json
import shutil
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint.experimental.v1 as ocp

from gnp_scale.checkpoint.error_output import print_errors_once
from gnp_scale.checkpoint.metadata import DamagedError, Metadata, verify
from gnp_scale.mesh import REPLICATED, sharding
from gnp_scale.run.layout import CHECKPOINTS_FOLDER
from gnp_scale.run.messages import announce
from gnp_scale.run.processes import is_main_process
from gnp_scale.training.evaluate import METRICS

_COMMIT_MARKER = "commit_success.txt"
_GOOD_MARKER = "good"
_SCORES_FILE = "scores.json"
_UNFINISHED = ".orbax-checkpoint-tmp*"
_DELETED = "deleted"


print_errors_once()


class Write:
    """A write in the background."""

    def __init__(self, response: Any, commit: Callable[[], object] = lambda: None) -> None:
        self.error: Exception | None = None
        self._commit = commit
        # A daemon, because Orbax waits for a failed process long after the write was abandoned.
        self._thread = threading.Thread(target=self._wait_for, args=(response,), daemon=True)
        self._thread.start()

    def _wait_for(self, response: Any) -> None:
        try:
            response.result()
            self._commit()
        except Exception as error:
            self.error = error

    @property
    def is_over(self) -> bool:
        """Whether it was committed, or failed with `error`."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Waits until it is over."""
        self._thread.join()


class Store:
    """The checkpoints of a run folder. Only the main process marks, renames and deletes."""

    def __init__(self, run_dir: Any) -> None:
        self.folder = run_dir.absolute() / CHECKPOINTS_FOLDER
        self._deletions = ThreadPoolExecutor(max_workers=1)

    def close(self) -> None:
        """Waits for deletions, and takes no more."""
        self._deletions.shutdown()

    def finish_deletions(self) -> None:
        """Waits for those that have begun."""
        self._deletions.submit(lambda: None).result()

    def steps(self) -> list[int]:
        """The steps that have a folder, in order."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdecimal())

    def good_steps(self) -> list[int]:
        """The steps that are marked as good, in order."""
        return [step for step in self.steps() if (self._path(step) / _GOOD_MARKER).exists()]

    def mark_good(self, step: int) -> None:
        """Marks a step as good."""
        if is_main_process():
            # On a full disk the mark may be lost: then the step must pass the gate again after a restart.
            with contextlib.suppress(OSError):
                (self._path(step) / _GOOD_MARKER).touch()

    def add_scores(self, step: int, scores: Mapping[str, float]) -> None:
        """Adds the evaluation of a step that was saved without one."""
        if is_main_process():
            # If it is lost, the next start evaluates the step again.
            with contextlib.suppress(OSError, DamagedError):
                (self._path(step) / _SCORES_FILE).write_bytes(json.dumps(dict(scores)).encode())

    def scores(self, step: int) -> Mapping[str, float] | None:
        """The evaluation that was saved with a step, or added to it; None if there is none.

        Raises:
            Exception: any error that a damaged file causes.
        """
        return self.metadata(step)["scores"] or self._added_scores(step)

    def _added_scores(self, step: int) -> Mapping[str, float] | None:
        try:
            found = json.loads((self._path(step) / _SCORES_FILE).read_bytes())
        except FileNotFoundError:
            return None
        if not found.keys() >= {f"eval/{name}" for name in METRICS}:
            raise DamagedError("its scores are not those of an evaluation")
        return {name: float(value) for name, value in found.items()}

    def prepare(self, step: int) -> None:
        """Removes the remains of earlier writes of `step`, and checks that this process can write here.

        Raises:
            OSError: it cannot write.
        """
        self.clear_unfinished(step)
        # If Orbax fails in one process, the others wait. This finds what can be found before. It does not make the
        # folder of a run again that was moved.
        self.folder.mkdir(exist_ok=True)
        probe = self.folder / f"probe-{jax.process_index()}"
        probe.mkdir(exist_ok=True)
        probe.rmdir()

    def write(self, step: int, state: Any, metadata: Metadata) -> Write:
        """Starts to write a step. Every process calls it, with its shards of the same global arrays."""
        # The caller has listed the folder. Orbax's own check would need two more barriers.
        context = ocp.Context()
        context.file_options.skip_sync_file_validations = True
        with context:
            return Write(ocp.save_async(self._path(step), state, custom_metadata=metadata))

    def metadata(self, step: int) -> Metadata:
        """The metadata beside the arrays.

        Raises:
            DamagedError: the step is not committed, its metadata has changed, or they are those of another step.
            Exception: any error that a damaged file causes in Orbax.
        """
        if not (self._path(step) / _COMMIT_MARKER).exists():
            raise DamagedError("it is incomplete")
        return verify(self._orbax_metadata(step).custom_metadata, step)

    def abstract_state(self, step: int) -> Any:
        """Shapes and types of the arrays of a step, in nested dictionaries and lists; replicated.

        Raises:
            DamagedError: it has no description of them.
            Exception: any error that a damaged file causes in Orbax.
        """
        described, whole = self._orbax_metadata(step).metadata, sharding(REPLICATED)
        if described is None:
            raise DamagedError("its arrays are not described")
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole), described)

    def read(self, step: int, abstract_state: Any) -> Any:
        """The state of a step, with the types and shardings of `abstract_state`; waits for no other process. Parts of
        the state that `abstract_state` has not are not read.

        Raises:
            Exception: any error that a damaged file causes in Orbax.
        """
        context = _alone()
        context.pytree.loading.partial_load = True
        with context:
            return ocp.load(str(self._path(step)), abstract_state)

    def _orbax_metadata(self, step: int) -> Any:
        with _alone():
            return ocp.metadata(str(self._path(step)))

    def quarantine(self, step: int, word: str) -> str:
        """Renames the folder of a step, so that it is no longer read or deleted; returns the new name.

        Raises:
            OSError: the store refuses.
        """
        path = self._free_name(step, word)
        if is_main_process():
            self._path(step).rename(path)
        return path.name

    def delete(self, step: int) -> None:
        """Deletes a step in the background. It renames the folder first, so a kill leaves no half-deleted step.

        If the store refuses, the step stays.
        """
        if is_main_process():
            try:
                self._delete_behind(self._path(step))
            except OSError as error:
                announce(f"the checkpoint of step {step} could not be deleted ({error}): it stays")

    def clear_unfinished(self, step: int) -> None:
        """Removes what a failed write of `step` has left.

        Raises:
            OSError: the store refuses.
        """
        if is_main_process():
            for path in self.folder.glob(f"{step}{_UNFINISHED}"):
                self._delete_behind(path)

    def delete_leftovers(self) -> None:
        """Deletes in the background what killed writes and deletions have left. Only one run at a time writes here."""
        if is_main_process():
            for path in self.folder.glob(f"*.{_DELETED}*"):
                self._deletions.submit(shutil.rmtree, path, ignore_errors=True)
            for path in self.folder.glob(f"*{_UNFINISHED}"):
                # If the store refuses now, the next write reports it.
                with contextlib.suppress(OSError):
                    self._delete_behind(path)

    def _delete_behind(self, path: Path) -> None:
        gone = self._free_name(int(path.name.partition(".")[0]), _DELETED)
        path.rename(gone)
        self._deletions.submit(shutil.rmtree, gone, ignore_errors=True)

    def _free_name(self, step: int, word: str) -> Path:
        names = itertools.chain([f"{step}.{word}"], (f"{step}.{word}.{number}" for number in itertools.count(2)))
        return next(path for path in map(self.folder.joinpath, names) if not path.exists())

    def _path(self, step: int) -> Any:
        return self.folder / str(step)


def _alone() -> Any:
    """Reads wait for no other process: one that finds a damaged file must not block the others."""
    context = ocp.Context()
    context.multiprocessing_options.active_processes = {jax.process_index()}
    context.multiprocessing_options.primary_host = jax.process_index()
    return context
