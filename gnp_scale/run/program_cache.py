"""The cache of compiled programs: where it is, who writes it, and that a kill leaves no part of a program in it."""

import functools
import os
import tempfile
import uuid
import warnings
from pathlib import Path, PosixPath
from typing import Any

import jax
import numpy as np
from jax._src import cache_key
from jax._src import compilation_cache as file_cache
from jax._src.lib import xla_client
from jax._src.lru_cache import LRUCache
from jax.experimental.compilation_cache import compilation_cache

from gnp_scale.run.environment import user_cache
from gnp_scale.run.store import Folder
from gnp_scale.run.streams import say

_CACHE = "JAX_COMPILATION_CACHE_DIR"
_PROBE_BYTES = 2**20
"""Free space for a compiled step, which takes megabytes."""


def keep(is_writer: bool) -> None:
    """Makes JAX keep compiled programs in `JAX_COMPILATION_CACHE_DIR`, or by default in the user's cache folder.

    An empty variable turns this off. Only `is_writer` writes into the folder. If it cannot, the contents are still
    used, and a line says why nothing is added.
    """
    write_whole_files()
    # A warning of JAX that it cannot keep a program must not end the run, even if PYTHONWARNINGS turns warnings into
    # errors.
    warnings.filterwarnings("default", message="Error (read|writ)ing persistent compilation cache")
    folder = os.environ.get(_CACHE, user_cache("xla"))
    if folder == "" or "://" in (folder or ""):
        return
    problem = "there is no home folder" if folder is None else _problem(Path(folder)) if is_writer else None
    exists = folder is not None and os.path.isdir(folder)
    jax.config.update("jax_compilation_cache_dir", folder if exists or problem is None else None)
    if problem is not None:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", float("inf"))
        say(f"compiled programs are not kept, so every start compiles anew ({problem}): set {_CACHE} to a folder")


def keep_in(folder: Folder) -> None:
    """Makes JAX keep compiled programs in `folder`, unless `JAX_COMPILATION_CACHE_DIR` is set."""
    if _CACHE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()  # JAX has opened the earlier folder.


def share() -> None:
    """Lets every process of a run on CPUs find the programs that process 0 keeps.

    JAX finds a program by the topology of its devices, among others. XLA's topology of CPUs contains the number of the
    process that asks, so that the other processes would compile at every start. Here it is that of process 0.
    """
    hash_topology = cache_key._hash_accelerator_config

    def hash_as_process_0(hash_obj: Any, accelerators: np.ndarray) -> None:
        is_cpu = accelerators.flat[0].platform == "cpu"
        hash_topology(hash_obj, _cpu_of_process_0() if is_cpu else accelerators)

    cache_key._hash_accelerator_config = hash_as_process_0


def write_whole_files() -> None:
    """Makes JAX write each file of a cache on a disk in one move, and replace one that it could not read.

    JAX itself writes a program in place, and no file that exists. After a kill a part of a program would stay for ever,
    and every later start would warn and compile it anew. A process that reads at that moment has a part too.
    """
    file_cache.LRUCache = _WholeFiles


class _WholeFiles(LRUCache):
    """JAX's cache with that property; JAX calls `put` for a program that it did not find or could not read."""

    def __init__(self, path: str, *, max_size: int, lock_timeout_secs: float | None = 10) -> None:
        super().__init__(path, max_size=max_size, lock_timeout_secs=lock_timeout_secs)
        if "://" not in path:
            self.path = _WholePath(path)

    def put(self, key: str, value: bytes) -> None:
        """Keeps a program, in place of what is there; but with a bound of the cache's size, JAX keeps that."""
        if self.eviction_enabled:
            super().put(key, value)
        else:
            (self.path / f"{key}-cache").write_bytes(value)


class _WholePath(PosixPath):
    """A path whose file is written in one move."""

    def write_bytes(self, data: Any) -> int:
        """Writes the file, as `Path.write_bytes` does."""
        new = Path(self.with_name(f"{uuid.uuid4().hex}.new"))
        new.parent.mkdir(parents=True, exist_ok=True)  # Someone may have removed the folder.
        try:
            num_bytes = new.write_bytes(data)
            new.replace(self)
        except OSError:
            new.unlink(missing_ok=True)
            raise
        return num_bytes


@functools.cache
def _cpu_of_process_0() -> np.ndarray:
    """A CPU like those of this machine, in a client that knows of no other process: so it belongs to process 0."""
    return np.array(xla_client.make_cpu_client().devices())


def _problem(folder: Path) -> str | None:
    """Why nothing can be written into `folder`; None if it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return str(error)
    return None
