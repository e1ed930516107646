"""Start-up and end of a process: devices, the processes that train together, and that they agree."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NoReturn, Self

import jax
from jax._src import cloud_tpu_init, distributed
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

from gnp_scale import __version__
from gnp_scale.config import Config, ConfigError, DataConfig, check
from gnp_scale.exit_codes import Exit
from gnp_scale.run import awake, environment
from gnp_scale.run.budgets import DEFAULTS_S, VARIABLE, budgets_s
from gnp_scale.run.consensus import all_gather
from gnp_scale.run.streams import say

NUM_CPU_DEVICES = 8
"""Devices made of the host's CPU where `JAX_NUM_CPU_DEVICES` and `XLA_FLAGS` name no other number."""

_HEARTBEAT_S = 7 * 24 * 3600
"""JAX would end processes that were stopped together for longer; the watchdog finds a silent one sooner."""

FAILURE = "gnp_scale/watchdog/main/failure"
"""Key of the first `Failure` of the run in the coordination service."""

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "grain")
"""What numbers and the stream of examples depend on."""

_LEAVE_S = 60
"""For how long a process that leaves waits for the others; where one of them is silent, it waits less."""
_HUNG_LEAVE_S = 10


@dataclass(frozen=True)
class Failure:
    """Why a process ends, which the others do as well, and with the same exit code."""

    code: int
    reason: str

    def publish(self) -> None:
        """Tells it to the other processes, if it is the first of the run."""
        client = distributed.global_state.client
        assert client is not None, "there are no others"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(FAILURE, json.dumps(asdict(self)))

    @classmethod
    def decode(cls, text: str) -> Self:
        """What `publish` sent."""
        return cls(**json.loads(text))


def start() -> None:
    """Readies JAX: CPU devices where there is no accelerator, the other processes, and the compilation cache.

    Call it once, before anything asks JAX for its devices. Processes that do not find each other within the budget
    `join` end with one line and `Exit.HUNG`.

    Raises:
        ConfigError: the environment names some, but not all, of coordinator, number of processes and rank; or holds
            what training cannot work with.
    """
    environment.check_jax_settings()
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", NUM_CPU_DEVICES)
    if os.environ.get("JAX_COORDINATOR_ADDRESS"):
        _join(os.environ["JAX_COORDINATOR_ADDRESS"], *_read_environment())
    elif _in_cluster():
        _join("that the launcher names", None, None)
    else:
        num_processes = environment.number("JAX_NUM_PROCESSES", 1)
        check(
            num_processes == 1,
            f"JAX_NUM_PROCESSES is {num_processes}, but JAX_COORDINATOR_ADDRESS is not set: set it to host:port of "
            "process 0, or unset both",
        )
    environment.keep_compiled(is_writer=distributed.global_state.process_id == 0)


def check_devices() -> None:
    """Starts the devices, after `start`; raises what `environment.check_devices` does."""
    environment.check_devices(is_main=distributed.global_state.process_id == 0)


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
    several = any(environment.number(name, 1) > 1 for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"))
    return several or _in_tpu_pod()


def _in_tpu_pod() -> bool:
    """Asks JAX's own detection, which reads GKE's variables or, on a TPU VM, the metadata server."""
    if not cloud_tpu_init.running_in_cloud_tpu_vm:
        return False
    found = next((cluster for cluster in (GkeTpuCluster, GceTpuCluster) if cluster.is_env_present()), None)
    return found is not None and found.get_process_count() > 1


def _join(address: str, num_processes: int | None, process_id: int | None) -> None:
    environment.bypass_proxies()
    # It would take SIGTERM, and nothing else; `preemption.py` has another way to all processes.
    jax.config.update("jax_enable_preemption_service", False)
    bound_s = budgets_s()["join"]
    # Where its own time-outs pass, JAX aborts with a stack trace, and they count the time of a stopped process.
    with _deadline(bound_s, functools.partial(_give_up_joining, address, bound_s)):
        jax.distributed.initialize(
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=_HEARTBEAT_S,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )


@contextlib.contextmanager
def _deadline(seconds: float, act: Callable[[], Any]) -> Iterator[None]:
    """Calls `act`, in another thread, unless what is inside is over within `seconds` in which this process runs."""
    is_over = threading.Event()
    threading.Thread(target=lambda: awake.wait(is_over, seconds) or act(), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _give_up_joining(address: str, bound_s: float) -> NoReturn:
    address = distributed.global_state.coordinator_address or address
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        what = f"the coordinator at {address} answers, but some of the processes are missing: see which never started"
    except (OSError, ValueError) as error:
        what = f"no coordinator answers at {address} ({error}): check the address, and that process 0 runs there"
    proxy = os.environ.get(environment.PROXY)
    what += f"; {environment.PROXY} is {proxy}, which the processes may not reach each other through" if proxy else ""
    say(f"not joined after {bound_s:.0f} s: {what} (budget join of {VARIABLE})")
    os._exit(Exit.HUNG)


def coordination() -> tuple[Any, int, int]:
    """The client of JAX's coordination service, None in one process; the rank; the number of processes."""
    state = distributed.global_state
    return state.client, state.process_id, state.num_processes


def barrier() -> None:
    """Waits for the other processes, as long as they may compile; all call it, equally often.

    The first collective has less patience: Gloo gives the others 30 s, and one may compile for longer than another.
    """
    all_gather(None)


def is_main_process() -> bool:
    """Whether this process is the one that writes what is written once."""
    return jax.process_index() == 0


def check_agreement(config: Config) -> None:
    """Confirms, before anything is compiled, that all processes have the same versions, configuration and budgets.

    The folder of data sets may be another one on each host.

    Raises:
        ConfigError: one of them differs from process 0; every process raises.
    """
    shared = replace(config, data=replace(config.data, root=DataConfig.root))
    digest = hashlib.sha256(repr(shared).encode()).hexdigest()[:12]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    changed = [f"{name}={seconds:g}" for name, seconds in budgets_s().items() if seconds != DEFAULTS_S[name]]
    mine = f"gnp-scale {__version__}, {versions}, configuration {digest}, {VARIABLE}={','.join(changed)}"
    theirs = all_gather((mine, socket.gethostname()))
    for n, (line, host) in enumerate(theirs):
        if line != theirs[0][0]:
            other = " on ".join(theirs[0])
            raise ConfigError(f"process {n} has {line} on {host}, but process 0 has {other}: start all with the same")


def leave(code: int, reason: str | None = None) -> int:
    """Returns `code` in one process; several leave together, each with its own code, and this never returns.

    The `reason` why this process fails, if it does, ends the others with the same code. JAX would wait for them for
    minutes and then abort. Here the wait is bounded, and a process that others have left behind still exits with its
    code.
    """
    state = distributed.global_state
    if state.client is None:
        return code
    sys.stdout.flush()
    sys.stderr.flush()
    wait_s = _HUNG_LEAVE_S if code == Exit.HUNG else _LEAVE_S
    with _deadline(wait_s + 5, functools.partial(os._exit, code)), contextlib.suppress(jax.errors.JaxRuntimeError):
        if reason is not None:
            Failure(code, f"process {state.process_id} on {socket.gethostname()} failed: {reason}").publish()
        state.client.wait_at_barrier("gnp_scale/leave", 1000 * wait_s)
    if state.process_id == 0:
        # The others lose their coordinator, and with it their exit code, when this process ends.
        threading.Event().wait(1)
    os._exit(code)
