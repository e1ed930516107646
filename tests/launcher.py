"""Starts `gnp-scale` as a user does: in one separate process, or in several that train together over loopback."""

import time
from pathlib import Path

from gnp_scale.chaos.local_processes import TIMEOUT_S, LocalJob


class Job(LocalJob):
    """A run in separate processes, which a test follows by its output."""

    def wait_for(self, text: str) -> None:
        """Waits until a process has printed `text`."""
        deadline = time.monotonic() + TIMEOUT_S
        while text not in self.output():
            assert self.is_whole, self.output()
            assert time.monotonic() < deadline, f"no {text!r} in\n{self.output()}"
            time.sleep(0.05)


def run(log_dir: Path, *arguments: str, **options: int) -> str:
    """Runs `gnp-scale` to its end, which must be a success, and returns its output."""
    job = Job(log_dir, list(arguments), **options)
    assert job.exit_codes() == [0] * len(job.processes), job.output()
    return job.output()
