"""Start-up of a process: devices, the processes that train together, and the exit codes."""

import os
from enum import IntEnum
from pathlib import Path

import jax

from gnp_scale.config import ConfigError

NUM_CPU_DEVICES = 8
"""Devices made of the host's CPU where `JAX_NUM_CPU_DEVICES` and `XLA_FLAGS` name no other number."""


class Exit(IntEnum):
    """What the exit code tells a launch script."""

    FINISHED = 0
    WRONG_CONFIG = 2
    PREEMPTED = 75
    """Stopped by a signal with the state saved: start it again."""
    HUNG = 76
    DIVERGED = 77
    """The loss is not finite any more."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C with nothing saved: by a second one while training, or in another command."""


def start() -> None:
    """Readies JAX: the compilation cache, CPU devices where there is no accelerator, and the other processes.

    Call it once, before anything asks JAX for its devices. Compiled steps are kept in `JAX_COMPILATION_CACHE_DIR`, or
    in the user's cache folder, so that a run that starts again does not compile again.

    Raises:
        ConfigError: the environment names some, but not all, of coordinator, number of processes and rank.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gnp_scale" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", NUM_CPU_DEVICES)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        _join_by_environment()
    elif _in_cluster():
        jax.distributed.initialize()


def _join_by_environment() -> None:
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        num_processes, process_id = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        given = ", ".join(f"{name}={os.environ.get(name)!r}" for name in names)
        raise ConfigError(
            f"JAX_COORDINATOR_ADDRESS is set, with {given}: set both to numbers, or none of the three"
        ) from None
    jax.distributed.initialize(num_processes=num_processes, process_id=process_id)


def _in_cluster() -> bool:
    """Whether a launcher that JAX recognises started several processes: Slurm, Open MPI, or a TPU pod."""
    several = any(int(os.environ.get(name, "1")) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return several or "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")


def is_main_process() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0
