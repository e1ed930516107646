"""Settings of a process from its environment: cache of compiled programs, networks and devices."""

import contextlib
import ctypes
import functools
import logging
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import cache_key, hardware_utils
from jax._src.lib import xla_client
from jax.experimental.compilation_cache import compilation_cache

from gnp_scale.checks import ConfigError, DeviceError, check
from gnp_scale.run.store import Folder
from gnp_scale.run.streams import say

DETERMINISTIC_FLAGS = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
"""Either in XLA_FLAGS makes XLA choose fixed algorithms for GPUs."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # Names of glibc's malloc.h.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_PROBE_BYTES = 2**20
"""Free space for a compiled step, which takes megabytes."""
PROXY = "grpc_proxy"
_FALL_BACK = "may be present on this machine"


def number(name: str, default: int) -> int:
    """The whole number in an environment variable; `default` if it is not set or empty.

    Raises: ConfigError: it is not a number.
    """
    text = os.environ.get(name, "") or str(default)
    check(text.isdecimal(), f"{name} is {text!r}: set it to a whole number, or unset it")
    return int(text)


def check_jax_settings() -> None:
    """Raises ConfigError for JAX settings in environment variables with which training cannot work."""
    for name, needed in {
        "jax_enable_x64": False,
        "jax_disable_jit": False,
        "jax_numpy_dtype_promotion": "standard",
    }.items():
        value = getattr(jax.config, name)
        check(value == needed, f"{name.upper()} is {value}, but training works with {needed} alone: unset it")


def xla_flags() -> dict[str, str]:
    """The flags in XLA_FLAGS with their values; a flag alone has an empty one."""
    parts = (flag.removeprefix("--").partition("=") for flag in os.environ.get("XLA_FLAGS", "").split())
    return {name: value for name, _, value in parts}


def is_deterministic() -> bool:
    """Whether XLA_FLAGS turns one of `DETERMINISTIC_FLAGS` on: as XLA reads it, alone or with true or 1."""
    flags = xla_flags()
    return any(flags.get(name, "false").lower() in ("", "true", "1") for name in DETERMINISTIC_FLAGS)


def keep_compiled(is_writer: bool) -> None:
    """Makes JAX keep compiled programs in `JAX_COMPILATION_CACHE_DIR`, or by default in the user's cache folder.

    An empty variable turns this off. Only `is_writer` writes into the folder. If it cannot, the contents are still
    used, and a line says why nothing is added.
    """
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


def share_compiled() -> None:
    """Lets every process of a run on CPUs find the programs that process 0 keeps.

    JAX finds a program by the topology of its devices, among others. XLA's topology of CPUs contains the number of the
    process that asks, so that the other processes would compile at every start. Here it is that of process 0.
    """
    hash_topology = cache_key._hash_accelerator_config

    def hash_as_process_0(hash_obj: Any, accelerators: np.ndarray) -> None:
        is_cpu = accelerators.flat[0].platform == "cpu"
        hash_topology(hash_obj, _cpu_of_process_0() if is_cpu else accelerators)

    cache_key._hash_accelerator_config = hash_as_process_0


@functools.cache
def _cpu_of_process_0() -> np.ndarray:
    """A CPU like those of this machine, in a client that knows of no other process: so it belongs to process 0."""
    return np.array(xla_client.make_cpu_client().devices())


def user_cache(name: str) -> str | None:
    """The folder `name` of this project in the user's cache folder, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    return os.path.join(base, "gnp_scale", name) if os.path.isabs(base) else None


def _problem(folder: Path) -> str | None:
    """Why nothing can be written into `folder`; None if it is writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        return str(error)
    return None


def keep_compiled_in(folder: Folder) -> None:
    """Makes JAX keep compiled programs in `folder`, unless `JAX_COMPILATION_CACHE_DIR` is set."""
    if _CACHE not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        compilation_cache.reset_cache()  # JAX has opened the earlier folder.


def bypass_proxies() -> None:
    """Lets the processes of a run connect directly, without a proxy from the environment.

    gRPC prefers `grpc_proxy` to `https_proxy` and `http_proxy`; an empty value means no proxy. A `grpc_proxy` that the
    user set stays.
    """
    jax.config.update("jax_check_proxy_envs", False)
    if PROXY not in os.environ:
        os.putenv(PROXY, "")


def keep_freed_memory() -> None:
    """Makes each step on CPUs take its memory from that of the step before; only glibc has this setting.

    By default glibc returns large blocks to the system at once, which clears every page when a step uses it again.
    Threads other than the main one have no heap for large blocks. Therefore `processes.start` lets a program run in the
    thread that calls it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(name, 2**31 - 1)


def check_devices(is_main: bool) -> None:
    """Starts the devices; prints a line if there is an accelerator that is not used.

    Raises: ConfigError: `JAX_PLATFORMS` names a platform that JAX does not have here. DeviceError: a device does not
        start.
    """
    asked = jax.config.jax_platforms
    logger = logging.getLogger("jax._src.xla_bridge")
    with contextlib.ExitStack() as stack:

        def is_needed(record: logging.LogRecord) -> bool:
            return _FALL_BACK not in record.getMessage()

        logger.addFilter(is_needed)
        stack.callback(logger.removeFilter, is_needed)
        try:
            platform = jax.default_backend()
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split()) or "JAX found no device of that platform"
            if "not in the list of known backends" in reason:
                raise ConfigError(f"JAX_PLATFORMS is {asked}: {reason}") from error
            what = f"the devices do not start, JAX_PLATFORMS is {asked}" if asked else "the devices do not start"
            raise DeviceError(f"{what}: {reason}") from error
    if platform == "cpu":
        keep_freed_memory()
    unused = None if asked or platform != "cpu" else unused_accelerator()
    if unused is not None and is_main:
        say(f"{unused}: training on the CPU (JAX_PLATFORMS=cpu says that this is meant)")


def unused_accelerator() -> str | None:
    """An accelerator of this machine that JAX does not use, and how to use it; None if there is none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hardware_utils.has_visible_nvidia_gpu() and not hidden:
        return "this machine has an NVIDIA GPU that JAX cannot use; pip install '.[cuda]' has what it needs"
    num_chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    if num_chips > 0:
        return "this machine has a TPU that JAX cannot use; pip install '.[tpu]' has what it needs"
    return None
