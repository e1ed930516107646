"""Start-up and end of a process: devices, the processes that train together, and that they agree."""

import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import jax
from jax._src import cloud_tpu_init, distributed
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

from gnp_scale import __version__
from gnp_scale.budgets import VARIABLE, budgets_s
from gnp_scale.config import Config, ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.stages import Stage

NUM_CPU_DEVICES = 8
"""Devices made of the host's CPU where `JAX_NUM_CPU_DEVICES` and `XLA_FLAGS` name no other number."""

_meetings = itertools.count()

_LEAVE_S = 60
"""For how long a process that has finished waits for the others; one that failed waits less."""
_FAILED_LEAVE_S = 10


def start() -> None:
    """Readies JAX: the compilation cache, CPU devices where there is no accelerator, and the other processes.

    Call it once, before anything asks JAX for its devices. Compiled steps are kept in `JAX_COMPILATION_CACHE_DIR`, or
    in the user's cache folder, so that a run that starts again does not compile again. Processes that do not find
    each other within the budget `join` end with one line and `Exit.HUNG`.

    Raises:
        ConfigError: the environment names some, but not all, of coordinator, number of processes and rank.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gnp_scale" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache_dir))
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", NUM_CPU_DEVICES)
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        _join(os.environ["JAX_COORDINATOR_ADDRESS"], *_read_environment())
    elif _in_cluster():
        _join("that the launcher names", None, None)


def _read_environment() -> tuple[int, int]:
    address = os.environ["JAX_COORDINATOR_ADDRESS"]
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"JAX_COORDINATOR_ADDRESS is {address!r}: write it as host:port, the host that of process 0")
    names = ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    try:
        num_processes, process_id = (int(os.environ[name]) for name in names)
    except (KeyError, ValueError):
        given = ", ".join(f"{name}={os.environ.get(name)!r}" for name in names)
        raise ConfigError(
            f"JAX_COORDINATOR_ADDRESS is set, with {given}: set both to numbers, or none of the three"
        ) from None
    if not 0 <= process_id < num_processes:
        raise ConfigError(f"JAX_PROCESS_ID is {process_id} of {num_processes} processes: count them from 0")
    return num_processes, process_id


def _in_cluster() -> bool:
    """Whether a launcher that JAX recognises started several processes: Slurm, Open MPI, or a TPU pod."""
    several = any(int(os.environ.get(name, "1")) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return several or _in_tpu_pod()


def _in_tpu_pod() -> bool:
    """Asks JAX's own detection, which reads GKE's variables or, on a TPU VM, the metadata server."""
    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return False
    found = next((cluster for cluster in (GkeTpuCluster, GceTpuCluster) if cluster.is_env_present()), None)
    return found is not None and found.get_process_count() > 1


def _join(address: str, num_processes: int | None, process_id: int | None) -> None:
    # It would take SIGTERM, and nothing else; `preemption.py` has another way to all processes.
    jax.config.update("jax_enable_preemption_service", False)
    budgets = budgets_s()
    bound_s = budgets["join"]
    # Where its own time-outs pass, JAX aborts with a stack trace: they are longer than ours.
    with _deadline(bound_s, functools.partial(_give_up_joining, address, bound_s)):
        jax.distributed.initialize(
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=round(2 * bound_s) + 10,
            heartbeat_timeout_seconds=round(2 * budgets["silence"]) + 10,
        )


@contextlib.contextmanager
def _deadline(seconds: float, act: Callable[[], Any]) -> Iterator[None]:
    """Calls `act`, in another thread, unless what is inside is over within `seconds`."""
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _give_up_joining(address: str, bound_s: float) -> NoReturn:
    address = distributed.global_state.coordinator_address or address
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        what = f"the coordinator at {address} answers, but some of the processes are missing: see which never started"
    except (OSError, ValueError) as error:
        what = f"no coordinator answers at {address} ({error}): check the address, and that process 0 runs there"
    message = f"gnp-scale: not joined after {bound_s:.0f} s: {what} (budget join of {VARIABLE})"
    print(message, file=sys.stderr, flush=True)
    os._exit(Exit.HUNG)


def coordination() -> tuple[Any, int, int]:
    """The client of JAX's coordination service, None in one process; the rank; the number of processes."""
    state = distributed.global_state
    return state.client, state.process_id, state.num_processes


def meet() -> None:
    """Waits for the other processes, as long as they may compile; all call it, equally often.

    The first collective has less patience: Gloo gives the others 30 s, and one may compile for longer than another.
    """
    client = distributed.global_state.client
    if client is not None:
        client.wait_at_barrier(f"gnp_scale/meeting/{next(_meetings)}", round(1000 * budgets_s()[Stage.COMPILE]))


def is_main_process() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def check_agreement(config: Config) -> None:
    """Confirms, before anything is compiled, that all processes have the same versions and configuration.

    The folder of data sets may be another one on each host.

    Raises:
        ConfigError: one of them differs from process 0; every process raises.
    """
    client, num_processes = distributed.global_state.client, distributed.global_state.num_processes
    if client is None:
        return
    rank, timeout_ms = distributed.global_state.process_id, round(1000 * budgets_s()["join"])
    shared = replace(config, data=replace(config.data, root=""))
    digest = hashlib.sha256(repr(shared).encode()).hexdigest()[:12]
    versions = f"gnp-scale {__version__}, jax {jax.__version__}, jaxlib {importlib.metadata.version('jaxlib')}"
    mine = f"{versions}, configuration {digest}"
    client.key_value_set(f"gnp_scale/agreement/{rank}", f"{mine} on {socket.gethostname()}")
    theirs = [client.blocking_key_value_get(f"gnp_scale/agreement/{n}", timeout_ms) for n in range(num_processes)]
    parts = [line.rpartition(" on ")[0] for line in theirs]
    different = [n for n, part in enumerate(parts) if part != parts[0]]
    if different:
        n = different[0]
        raise ConfigError(f"process {n} has {theirs[n]}, but process 0 has {theirs[0]}: start all with the same")


def leave(code: int) -> int:
    """Returns `code` in one process; several leave together, each with its own code, and this never returns.

    JAX would wait for the others for minutes and then abort. Here the wait is bounded, and a process that others have
    left behind still exits with its code.
    """
    client = distributed.global_state.client
    if client is None:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    wait_s = _LEAVE_S if code in (Exit.FINISHED, Exit.PREEMPTED) else _FAILED_LEAVE_S
    with _deadline(wait_s + 5, functools.partial(os._exit, code)), contextlib.suppress(jax.errors.JaxRuntimeError):
        client.wait_at_barrier("gnp_scale/leave", 1000 * wait_s)
    if distributed.global_state.process_id == 0:
        # The others lose their coordinator, and with it their exit code, when this process ends.
        threading.Event().wait(1)
    os._exit(code)
