"""Reads a checkpoint on one device, without the data set and the network of its run."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.checkpoint.metadata import DamagedError
from gnp_scale.checkpoint.restore import MOST_LISTINGS, deleted, read_state, stored_steps, tried
from gnp_scale.checkpoint.store import Store
from gnp_scale.config import ConfigError, MeshConfig, check
from gnp_scale.mesh import make_mesh
from gnp_scale.run.store import Folder


def fingerprint(run_dir: Folder, step: int | None = None) -> tuple[int, str]:
    """(step, SHA-256) of the state saved at `step`, the newest when None: names, types, shapes and bytes of its leaves.

    Two fingerprints are equal if and only if parameters, batch statistics, optimizer state and method state are
    bitwise equal, for any mesh and number of processes.

    Raises:
        ConfigError: as `load_whole`.
    """
    step, state = load_whole(run_dir, step)
    digest = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(state)):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return step, digest.hexdigest()


def load_whole(run_dir: Folder, step: int | None = None) -> tuple[int, Any]:
    """(step, state) of the checkpoint of `step`, the newest when None, on one device of this host; as nested
    dictionaries and lists, for which neither the data set nor the network is needed.

    Raises:
        ConfigError: there is no such checkpoint, or it is damaged.
    """
    store = open_store(run_dir)
    chosen, problem, steps = step, "", []
    for _ in range(MOST_LISTINGS):
        steps = stored_steps(run_dir, store)
        chosen = steps[-1] if step is None else step
        check_stored(run_dir, chosen, steps)
        try:
            return chosen, _whole_state(store, chosen)
        except DamagedError as error:
            problem = str(error)
        # A run may delete a checkpoint while it is read.
        if not deleted(store, [chosen]):
            break
    others = [other for other in steps if other != chosen]
    advice = f"name another --step, of {others}" if others else "restore it from a copy, as there is no other"
    raise ConfigError(f"the checkpoint of step {chosen} is damaged ({problem}): {advice}")


def check_stored(run_dir: Folder, step: int, steps: Sequence[int]) -> None:
    """Raises ConfigError if `step` is none of `steps`, which are stored."""
    check(step in steps, f"{run_dir} has no checkpoint of step {step}: name another --step, of {list(steps)}")


def _whole_state(store: Store, step: int) -> Any:
    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1])):
        metadata = tried(store.metadata, step)
        return read_state(store, step, tried(store.abstract_state, step), metadata)
