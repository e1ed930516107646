#!/usr/bin/env python3
"""Trains in several processes on this machine: a log for each, the first failure shown, and no process left running.

python launch/local/train.py 2 configs/digits.py:quickstart --run-dir runs/two
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.preemption import signals_to_take

NUM_SHOWN_LINES = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the processes to their end; returns 0, or the exit code of the first one that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num_processes", type=int)
    parser.add_argument("recipe", help="and the flags of gnp-scale train")
    parser.add_argument("--log-dir", type=Path, default=Path("logs"), help="default: %(default)s")
    parser.add_argument(
        "--grace-s",
        type=float,
        default=90.0,
        help="for the others to leave by themselves after a failure (%(default)s)",
    )
    options, flags = parser.parse_known_args(arguments)
    if options.num_processes < 1:
        parser.error(f"num_processes is {options.num_processes}: give at least 1")
    try:
        options.log_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--log-dir {options.log_dir} cannot be made ({error.strerror}): give another folder")
    logs = [options.log_dir / f"{rank}.log" for rank in range(options.num_processes)]
    signals: list[int] = []
    for number in signals_to_take():
        signal.signal(number, lambda number, _: signals.append(number))
    processes = _start([sys.executable, "-m", "gnp_scale.cli", "train", options.recipe, *flags], logs)
    failed = _wait(processes, signals, options.grace_s)
    if failed is None:
        return 0
    code = processes[failed].returncode
    print(f"process {failed} was the first to stop, with exit code {code}")
    if code != Exit.PREEMPTED:
        print(f"The end of {logs[failed]}:", *_last_lines(logs[failed]), sep="\n")
    return code if code > 0 else 128 - code


def _start(command: list[str], logs: list[Path]) -> list[subprocess.Popen]:
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": f"localhost:{_free_port()}", "JAX_NUM_PROCESSES": str(len(logs))}
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            # In separate sessions they get a Ctrl-C only from here, and not also from the terminal.
            start = {"stdout": output, "stderr": output, "start_new_session": True}
            processes.append(subprocess.Popen(command, env=env | {"JAX_PROCESS_ID": str(rank)}, **start))
    print(f"{len(logs)} processes, which write to {' '.join(map(str, logs))}", flush=True)
    return processes


def _wait(processes: list[subprocess.Popen], signals: list[int], grace_s: float) -> int | None:
    """Waits for all to end, passes `signals` on to them, and kills those that still run after the first failure.

    Returns the rank of that failure, if any.
    """
    failed, deadline = None, float("inf")
    while True:
        codes = [process.poll() for process in processes]
        if failed is None and any(codes):
            failed = next(rank for rank, code in enumerate(codes) if code)
            deadline = time.monotonic() + grace_s
        if None not in codes:
            return failed
        arrived = [signals.pop(0) for _ in range(len(signals))]
        if time.monotonic() > deadline:
            arrived.append(signal.SIGKILL)
        for number in arrived:
            for process in processes:
                process.send_signal(number)
        time.sleep(0.1)


def _last_lines(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-NUM_SHOWN_LINES:]


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
