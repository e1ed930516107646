"""A process beside a training process: ends it when no Python runs in it any more, where a library keeps Python's lock.

It is a process because nothing inside can tell such a hang from a stop (SIGSTOP, a frozen container), which is none.
Run as a script, it needs the standard library alone.
"""

import os
import select
import signal
import sys
import time

STACKS_SIGNAL = signal.SIGQUIT
"""Has the training process print all stacks and go on, as `Ctrl-\\` does; it is handled outside of Python."""
_TICKS = 20
_STACKS_S = 2.0


def watch(pid: int, silence_s: float) -> None:
    """Reads standard input, where the parent `pid` writes a byte now and then; kills it after `silence_s` without one.

    Seconds are counted in ticks, so time in which this process is stopped as well is one tick. Returns once the parent
    has ended, or has closed the other end.
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
