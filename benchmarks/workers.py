"""Processes that are compared: each works when it is asked, and is stopped between rounds."""

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CLOCK_HZ = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Work:
    """What a request has cost, in seconds of the CPUs and of the clock, and the line that answered it."""

    cpu_s: float
    seconds: float
    answer: str


class Worker:
    """A process on as many CPUs as it has threads, which prints "ready", and then a line for each line of its input.

    It is stopped between requests: else it would work ahead at no cost.
    """

    def __init__(self, command: list[str], num_threads: int, variables: Mapping[str, str] | None = None) -> None:
        """Starts it; `variables` are added to its environment."""
        self._command = command
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, **(variables or {})},
            start_new_session=True,
        )
        # It has no other threads yet, and those that it starts inherit this.
        os.sched_setaffinity(self._process.pid, range(num_threads))

    def get_ready(self) -> None:
        """Waits until it is ready for requests; so several may start at the same time.

        Raises: RuntimeError: it has ended; with the end of what it printed on standard error.
        """
        self._answer()
        self._signal(signal.SIGSTOP)

    def ask(self, request: str) -> Work:
        """Sends a line, and waits for the answer; raises what `get_ready` raises."""
        assert self._process.stdin is not None
        cpu_s, start_s = self._cpu_s(), time.perf_counter()
        self._signal(signal.SIGCONT)
        print(request, file=self._process.stdin, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return Work(self._cpu_s() - cpu_s, time.perf_counter() - start_s, answer)

    @property
    def peak_bytes(self) -> int:
        """The largest resident memory of the process since its start."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, flags=re.MULTILINE)
        return 1024 * int(kilobytes)

    def close(self) -> None:
        """Ends the process and its workers."""
        if self._process.poll() is None:
            self._signal(signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def _signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise RuntimeError(f"{' '.join(self._command)} has ended:\n{self._errors.read()[-2000:]}")
        return line.strip()

    def _cpu_s(self) -> float:
        """Of the process and its workers."""
        total, pending = 0, [self._process.pid]
        while pending:
            pid = pending.pop()
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
            for task in Path(f"/proc/{pid}/task").iterdir():
                pending += [int(child) for child in (task / "children").read_text().split()]
        return total / CLOCK_HZ
