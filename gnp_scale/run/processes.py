"""Start and end of a process: devices, the processes that train together, and the check that they agree."""

import contextlib
import functools
import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NoReturn, Self

import jax
from jax._src import cloud_tpu_init, distributed
from jax._src.clusters.cloud_tpu_cluster import GceTpuCluster, GkeTpuCluster

from gnp_scale.config import ConfigError, check
from gnp_scale.exit_codes import Exit
from gnp_scale.run import awake, environment, program_cache
from gnp_scale.run.budgets import VARIABLE, budgets_s
from gnp_scale.run.consensus import all_gather
from gnp_scale.run.streams import say

NUM_CPU_DEVICES = 2
"""Simulated CPU devices, if `JAX_NUM_CPU_DEVICES` and `XLA_FLAGS` give no other number. More make a step slower."""

_HEARTBEAT_S = 7 * 24 * 3600
"""JAX would end processes that were stopped together for longer; the watchdog detects a silent one sooner."""

FAILURE = "gnp_scale/watchdog/main/failure"
"""Key of the first `Failure` of the run in the coordination service."""

_LEAVE_S = 60
"""How long a process that exits waits for the others; less if one of them is silent."""
_HUNG_LEAVE_S = 10


@dataclass(frozen=True)
class Failure:
    """Why a process ends; the others end too, with the same exit code."""

    code: int
    reason: str

    def publish(self) -> None:
        """Sends it to the other processes, if it is the first failure of the run."""
        client = distributed.global_state.client
        assert client is not None, "there are no others"
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            client.key_value_set(FAILURE, json.dumps(asdict(self)))

    @classmethod
    def decode(cls, text: str) -> Self:
        """The failure that `publish` sent."""
        return cls(**json.loads(text))


def start() -> None:
    """Sets up JAX: CPU devices if there is no accelerator, the other processes, and the compilation cache.

    Call it once, before anything asks JAX for its devices. Processes that do not find each other within the budget
    `join` end with one line and `Exit.HUNG`.

    Raises:
        ConfigError: the environment names some, but not all, of coordinator, number of processes and rank; or training
            cannot work with its settings.
    """
    environment.check_jax_settings()
    is_given = "JAX_NUM_CPU_DEVICES" in os.environ or "xla_force_host_platform_device_count" in environment.xla_flags()
    if not is_given:
        jax.config.update("jax_num_cpu_devices", NUM_CPU_DEVICES)
    jax.config.update("jax_cpu_enable_async_dispatch", False)  # See `environment.keep_freed_memory`.
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
    program_cache.keep(is_writer=distributed.global_state.process_id == 0)
    if distributed.global_state.num_processes > 1:
        program_cache.share()


def check_devices() -> None:
    """Starts the devices, after `start`; raises what `environment.check_devices` raises."""
    environment.check_devices(is_main=distributed.global_state.process_id == 0)


def check_alone() -> None:
    """Raises ConfigError if a launcher has started several processes, each of which would start others by itself."""
    check(
        environment.number("JAX_NUM_PROCESSES", 1) == 1 and not _in_cluster(),
        "this command starts processes by itself, and the environment says that several train together: start it once, "
        "without JAX_NUM_PROCESSES, srun or mpirun",
    )


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
    # JAX would handle only SIGTERM; `preemption.py` has another way to reach all processes.
    jax.config.update("jax_enable_preemption_service", False)
    bound_s = budgets_s()["join"]
    # After its own timeouts JAX aborts with a stack trace, and they count the time of a stopped process.
    with _deadline(bound_s, functools.partial(_give_up_joining, address, bound_s)):
        jax.distributed.initialize(
            num_processes=num_processes,
            process_id=process_id,
            initialization_timeout=_HEARTBEAT_S,
            heartbeat_timeout_seconds=_HEARTBEAT_S,
        )


@contextlib.contextmanager
def _deadline(seconds: float, act: Callable[[], Any]) -> Iterator[None]:
    """Calls `act`, in another thread, unless the block ends while this process runs for `seconds`."""
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
    """Waits for the other processes, as long as they may compile; all must call it equally often.

    The first collective would not wait long enough: Gloo's timeout is 30 s, and compile times may differ by more.
    """
    all_gather(None)


def is_main_process() -> bool:
    """Whether this process is the one that writes files that are written once."""
    return jax.process_index() == 0


def leave(code: int, reason: str | None = None) -> int:
    """Returns `code` in a single process; several processes exit together, each with its own code, and this never
    returns.

    If this process fails, its `reason` ends the others with the same code. JAX would wait for them for minutes and then
    abort. Here the wait is limited, and a process that waits in vain still exits with its own code.
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
        # When this process ends, the others lose their coordinator and their exit code.
        threading.Event().wait(1)
    os._exit(code)
