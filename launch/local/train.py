#!/usr/bin/env python3
"""Trains in several processes on this machine: a log for each, the first failure shown, and no process left running.

python launch/local/train.py 2 configs/digits.py:quickstart --run-dir runs/two
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.signals import signals_to_take
from gnp_scale.run import streams

NUM_SHOWN_LINES = 20


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the processes to their end; returns 0, or the exit code of the first one that failed."""
    streams.protect()
    parser = _parser()
    options, flags = parser.parse_known_args(arguments)
    if options.num_processes < 1:
        parser.error(f"num_processes is {options.num_processes}: give at least 1")
    if not options.grace_s >= 0:
        parser.error(f"--grace-s is {options.grace_s}: give 0 or more seconds")
    logs = [options.log_dir / f"{rank}.log" for rank in range(options.num_processes)]
    signals: list[int] = []
    for number in signals_to_take():
        signal.signal(number, lambda number, _: signals.append(number))
    with contextlib.ExitStack() as stack:
        try:
            options.log_dir.mkdir(parents=True, exist_ok=True)
            outputs = [stack.enter_context(log.open("w")) for log in logs]
        except OSError as error:
            parser.error(f"{error.filename} cannot be made ({error.strerror}): give another folder as --log-dir")
        processes: list[subprocess.Popen] = []
        # If this process fails, the others save and end.
        stack.callback(lambda: _wait(processes, [signal.SIGTERM], options.grace_s))
        _start([sys.executable, "-m", "gnp_scale.cli", "train", options.recipe, *flags], outputs, processes)
        print(f"{len(logs)} processes, which write to {' '.join(map(str, logs))}", flush=True)
        return _report(processes, _wait(processes, signals, options.grace_s), logs)


def _parser() -> argparse.ArgumentParser:
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
    return parser


def _start(command: list[str], outputs: Sequence[IO[str]], processes: list[subprocess.Popen]) -> None:
    """Starts a process for each output, and adds it to `processes`."""
    address = f"localhost:{_free_port()}"
    env = os.environ | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(len(outputs))}
    for rank, output in enumerate(outputs):
        # In separate sessions they get a Ctrl-C only from here, and not also from the terminal.
        start = {"stdout": output, "stderr": output, "start_new_session": True}
        processes.append(subprocess.Popen(command, env=env | {"JAX_PROCESS_ID": str(rank)}, **start))


def _report(processes: Sequence[subprocess.Popen], failed: int | None, logs: Sequence[Path]) -> int:
    """Prints which process `failed` first, and returns the exit code."""
    if failed is None:
        return 0
    code = processes[failed].returncode
    print(f"process {failed} was the first to stop, with exit code {code}")
    if code != Exit.PREEMPTED:
        print(f"The end of {logs[failed]}:", *_last_lines(logs[failed]), sep="\n")
    return code if code > 0 else 128 - code


def _wait(processes: Sequence[subprocess.Popen], signals: list[int], grace_s: float) -> int | None:
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
