"""Starts `gnp-scale` as a user does: one or several processes train together on this machine's CPU."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

TIMEOUT_S = 240.0


class LocalJob:
    """The processes of one run, with `num_devices` CPU devices in all; their output goes to files.

    A `with` statement kills those that have not ended at its end. `entry` is the module to run, with its own arguments
    if any; `variables` are added to the environment.
    """

    def __init__(
        self,
        log_dir: Path,
        arguments: Sequence[str],
        num_processes: int = 1,
        num_devices: int = 8,
        entry: Sequence[str] = ("gnp_scale.cli",),
        variables: Mapping[str, str] | None = None,
    ) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices // num_processes)}
        env |= variables or {}
        if num_processes > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}", "JAX_NUM_PROCESSES": str(num_processes)}
        command = [sys.executable, "-m", *entry, *arguments]
        self.logs = [log_dir / f"{rank}.log" for rank in range(num_processes)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for rank, log in enumerate(self.logs):
            with log.open("w") as output:
                ranked = env | ({"JAX_PROCESS_ID": str(rank)} if num_processes > 1 else {})
                self.processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=ranked))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Kills the processes that have not ended."""
        for process in self.processes:
            process.kill()
            process.wait()

    def output(self) -> str:
        """All that the processes have printed so far."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    @property
    def is_whole(self) -> bool:
        """Whether all processes are running."""
        return all(process.poll() is None for process in self.processes)

    def exit_codes(self, timeout_s: float = TIMEOUT_S) -> list[int]:
        """Waits for all processes to end, each at most `timeout_s`; kills those that have not ended.

        Raises:
            subprocess.TimeoutExpired: a process did not end.
        """
        try:
            return [process.wait(timeout_s) for process in self.processes]
        finally:
            self.kill()


def free_port() -> int:
    """A port of loopback on which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
