"""Every test runs on 8 forced CPU devices, strictly: rank promotion raises and warnings are errors."""

import contextlib
import gc
import os
import signal
from pathlib import Path

# The same programs, also small ones, are compiled by many tests, and by the processes that they start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import hypothesis
import jax
import older_emitters
import pytest
from small_disk import disk  # noqa: F401

from gnp_scale.config import MeshConfig
from gnp_scale.mesh import make_mesh
from gnp_scale.run.program_cache import write_whole_files

# Until all tests are collected: nothing of theirs is garbage.
gc.disable()

# Under nohup, the processes that tests start would also ignore it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

write_whole_files()
older_emitters.use_where_unoptimized()

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

# The time of an example depends more on other work of the machine than on the code.
hypothesis.settings.register_profile("gnp_scale", deadline=None)
hypothesis.settings.load_profile("gnp_scale")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: one xdist process runs a whole file, and no slow file should start last."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish():
    """Python need not look for garbage among what is there for good, nor after each few hundred new objects.

    JAX makes millions of objects while it traces. This takes a twelfth off the processor time of tests that compile.
    """
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="module")
def unoptimized():
    """Compiles without LLVM's optimizations and by `older_emitters`, here and in processes that are started.

    That takes a third to a half of the time. For modules that ask what runs do, what programs consist of, or whether
    numbers are equal up to a bound that has room for another order of sums. XLA makes all of its own passes, so the HLO
    is the same, with its fusions and collectives. The bits of different programs, and long drills, are computed by the
    code of a user's run. So are programs for TPUs and GPUs: a process that compiles them would inherit the settings.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {older_emitters.FLAG}".strip())
        jax.config.update("jax_disable_most_optimizations", True)
        yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def optimized():
    """Compiles as in a user's run, in a module that is `unoptimized`."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch) -> Path:
    """An empty cache of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def set_mesh():
    """Sets a mesh of the given axis sizes over the first devices, until the test ends."""
    with contextlib.ExitStack() as stack:

        def enter(replica: int = 1, fsdp: int = 1, tensor: int = 1) -> jax.sharding.Mesh:
            mesh = make_mesh(MeshConfig(replica, fsdp, tensor), jax.devices()[: replica * fsdp * tensor])
            stack.enter_context(jax.set_mesh(mesh))
            return mesh

        yield enter


@pytest.fixture(scope="session")
def local_stores():
    """The stores of `stores.py`, by scheme, which one process starts once."""
    from stores import local_stores

    yield from local_stores()


@pytest.fixture(params=["gs", pytest.param("s3", marks=pytest.mark.slow)])
def store(request, local_stores):
    """One of the stores, undisturbed at first."""
    from stores import skip_without_packages

    skip_without_packages(request.param)
    local_stores[request.param].proxy.calm()
    yield local_stores[request.param]
    local_stores[request.param].proxy.calm()
