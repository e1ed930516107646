"""Starts `gnp-scale` as a user does: in processes of its own, one or several that train together on loopback."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

TIMEOUT_S = 240


class Job:
    """The processes of one run, with `num_devices` CPU devices between them; what they print goes to files."""

    def __init__(self, log_dir: Path, arguments: list[str], num_processes: int = 1, num_devices: int = 8) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(num_devices // num_processes)}
        if num_processes > 1:
            env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{_free_port()}", "JAX_NUM_PROCESSES": str(num_processes)}
        command = [sys.executable, "-m", "gnp_scale.cli", *arguments]
        self.logs = [log_dir / f"{rank}.log" for rank in range(num_processes)]
        self.processes = []
        for rank, log in enumerate(self.logs):
            with log.open("w") as output:
                ranked = env | ({"JAX_PROCESS_ID": str(rank)} if num_processes > 1 else {})
                self.processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=ranked))

    def output(self) -> str:
        """All that the processes have printed so far."""
        return "\n".join(log.read_text() for log in self.logs)

    def wait_for(self, text: str) -> None:
        """Waits until a process has printed `text`."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.output():
            assert all(process.poll() is None for process in self.processes), self.output()
            assert time.monotonic() < deadline, f"no {text!r} in\n{self.output()}"
            time.sleep(0.05)

    def exit_codes(self) -> list[int]:
        """Waits for all processes to end; those that do not are killed."""
        try:
            return [process.wait(TIMEOUT_S) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()


def run(log_dir: Path, *arguments: str, **options: int) -> str:
    """Runs `gnp-scale` to its end, which must be a success, and returns what it printed."""
    job = Job(log_dir, list(arguments), **options)
    assert job.exit_codes() == [0] * len(job.processes), job.output()
    return job.output()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
