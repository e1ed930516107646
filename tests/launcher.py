"""Starts `gnp-scale` as a user does: in one separate process, or in several that train together over loopback."""

import time
from pathlib import Path

from gnp_scale.chaos.local_processes import TIMEOUT_S, LocalJob

SMALL = [
    "configs/digits.py:quickstart",
    *("--model.depth", "1", "--model.width", "16", "--model.num-heads", "2"),
    *("--data.batch-size", "16", "--data.eval-batch-size", "360"),
    *("--train.num-steps", "60", "--optim.warmup-steps", "10", "--train.log-every-steps", "1"),
    *("--train.eval-every-steps", "10", "--checkpoint.every-steps", "7"),
]
"""Few steps of a small network, with several evaluations and saves: most of the time is startup."""
NUM_SHORT_STEPS = 20
SHORT = [*SMALL, "--train.num-steps", str(NUM_SHORT_STEPS), "--train.eval-every-steps", "5"]
"""For two processes: each step takes them half a second of a core. All tests with it share a compiled program."""


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
