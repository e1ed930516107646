"""A helper process that kills the training process if no Python code runs in it, because a library holds Python's lock.

It is a separate process because code inside cannot distinguish such a hang from a stop (SIGSTOP, a frozen container),
which is not a hang. It runs as a script and needs only the standard library.
"""

import os
import select
import signal
import sys
import time

STACKS_SIGNAL = signal.SIGQUIT
"""Makes the training process print all stacks and continue, as `Ctrl-\\` does; it is handled outside of Python."""
_TICKS = 20
_STACKS_S = 2.0


def watch(pid: int, silence_s: float) -> None:
    """Reads standard input, where the parent `pid` regularly writes a byte; kills it after `silence_s` without one.

    Seconds are counted in ticks, so time in which this process is stopped too counts as one tick. Returns when the
    parent has ended, or has closed the other end.
    """
    num_silent = 0
    while num_silent < _TICKS:
        ready, _, _ = select.select([sys.stdin], [], [], silence_s / _TICKS)
        if (ready and not os.read(sys.stdin.fileno(), 1 << 16)) or os.getppid() != pid:
            return
        num_silent = 0 if ready or _is_stopped(pid) else num_silent + 1
    print(f"gnp-scale: no Python ran in process {pid} for {silence_s:g} s: killing it", file=sys.stderr, flush=True)
    os.kill(pid, STACKS_SIGNAL)
    time.sleep(_STACKS_S)
    if os.getppid() == pid:
        os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] in ("T", "t")


if __name__ == "__main__":
    watch(int(sys.argv[1]), float(sys.argv[2]))
