"""Processes that compile side by side, and are timed one after the other."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Timer

from benchmarks.gpu.sizes import TINY


def wait_for_turn() -> None:
    """Says that everything is compiled, and waits to be told to go; exits if that never comes."""
    print("ready", flush=True)
    if sys.stdin.readline().strip() != "go":
        sys.exit(1)


def in_turn(folder: Path, wave: Sequence[Sequence[str]], limit_s: float) -> int:
    """Starts `python -m benchmarks.gpu NAME FOLDER ARGUMENT ...` for each of `wave` and prints what they print.

    All start at once. Each goes after the one before it has ended. Those that need more than `limit_s` are killed.
    Returns the number of those that failed.
    """
    commands = [[sys.executable, "-m", "benchmarks.gpu", name, folder, *arguments] for name, *arguments in wave]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for command in commands
    ]
    deadline_s = time.monotonic() + limit_s * (10 if TINY else 1)
    timers = [Timer(max(0.0, deadline_s - time.monotonic()), worker.kill) for worker in workers]
    for timer in timers:
        timer.start()
    for arguments, worker in zip(wave, workers, strict=True):
        assert worker.stdout is not None
        is_ready = any(line == "ready\n" for line in worker.stdout)
        rows = worker.communicate("go\n")[0] if is_ready else ""
        print(rows.rstrip() or f"| {' '.join(arguments)}: nothing in time; see the errors |", flush=True)
    for timer in timers:
        timer.cancel()
    return sum(worker.returncode != 0 for worker in workers)
