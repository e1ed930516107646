"""Trains the points of a sweep on this machine: each in a process of its own, a few at a time."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.signals import signals_to_take
from gnp_scale.run.files import try_lock
from gnp_scale.run.layout import LOCK_FILE
from gnp_scale.run.logs import telling_line
from gnp_scale.run.streams import say
from gnp_scale.sweeps.record import LOGS_FOLDER

_POLL_S = 0.2
_MOST_STARTS = 4
"""Of one point by one queue: one that hangs or is killed again and again must not keep the others waiting."""


class Queue:
    """Runs the command of each point, with its output in `folder/logs/NAME.log`, `num_jobs` at a time.

    A process that is stopped or killed is started again. A point that another process is training now is left to it,
    and is looked at again when that has ended. The lock of a point is that of its log. The process of the point holds
    it too, so it outlives a queue that is killed. `each_poll` is called all the time.

    Attributes:
        codes: the exit code of each point that has ended, also of points that were finished before.
    """

    def __init__(
        self,
        folder: Path,
        commands: Mapping[str, Sequence[str]],
        is_finished: Callable[[str], bool],
        num_jobs: int,
        each_poll: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder, self._commands, self._is_finished, self._num_jobs = folder, commands, is_finished, num_jobs
        self._each_poll = each_poll
        self._waiting = list(commands)
        self._elsewhere: set[str] = set()
        self._running: dict[str, tuple[subprocess.Popen[bytes], IO[bytes]]] = {}
        self._num_starts, self._log_starts = dict.fromkeys(commands, 0), dict.fromkeys(commands, 0)
        self._signals: list[int] = []
        self._is_stopped = False
        self.codes: dict[str, int] = {}

    def run(self) -> bool:
        """Runs until all points have ended, or until a signal has stopped them; returns whether all have ended.

        A signal is passed on to all processes, which save and exit; they are waited for, also if an error ends this.

        Raises:
            ConfigError: the folder cannot be written; and what `is_finished` raises.
        """
        with self._signals_are_kept(), self._none_is_left_behind():
            while self._running or (self._waiting and not self._is_stopped):
                self._pass_signals_on()
                self._start()
                time.sleep(_POLL_S)
                self._each_poll()
                self._collect()
            if self._is_stopped and self._elsewhere:
                say(f"other processes go on training {', '.join(sorted(self._elsewhere))}")
        return not self._is_stopped

    def error_of(self, name: str) -> str:
        """The line in which the last process of a point tells its error; see `telling_line`."""
        log = _log(self._folder, name).read_bytes()[self._log_starts[name] :]
        return telling_line(log.decode(errors="replace"))

    @contextlib.contextmanager
    def _signals_are_kept(self) -> Iterator[None]:
        """Inside the block, signals do nothing but wait in a list: a process that is just starting gets them too."""
        old = {number: signal.signal(number, self._keep) for number in signals_to_take()}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def _none_is_left_behind(self) -> Iterator[None]:
        try:
            yield
        finally:
            for process, _ in self._running.values():
                process.send_signal(signal.SIGTERM)
            for process, log in self._running.values():
                process.wait()
                log.close()

    def _keep(self, number: int, frame: Any) -> None:
        self._signals.append(number)

    def _pass_signals_on(self) -> None:
        while self._signals:
            number = self._signals.pop(0)
            self._is_stopped = True
            say(f"{signal.Signals(number).name}: waiting until the running points are saved ({len(self._running)})")
            for process, _ in self._running.values():
                process.send_signal(number)

    def _start(self) -> None:
        for name in list(self._waiting):
            if self._is_stopped or len(self._running) == self._num_jobs:
                return
            log = self._claim(name)
            if log is None:
                if name not in self._elsewhere:
                    say(f"{name}: another process is training it, and is waited for")
                self._elsewhere.add(name)
                continue
            self._elsewhere.discard(name)
            self._waiting.remove(name)
            with contextlib.ExitStack() as until_it_runs:
                until_it_runs.enter_context(log)
                if self._is_finished(name):
                    self._end(name, Exit.FINISHED, "is finished")
                    continue
                self._num_starts[name] += 1
                self._log_starts[name] = log.tell()
                # In a session of its own, it does not get the Ctrl-C of the terminal besides the one that is passed on.
                process = subprocess.Popen(
                    self._commands[name], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
                self._running[name] = process, log
                until_it_runs.pop_all()
            say(f"{name}: started, with its output in {log.name}")

    def _claim(self, name: str) -> IO[bytes] | None:
        """The log of a point, locked; None if another process is training the point."""
        with contextlib.ExitStack() as unless_claimed:
            try:
                log = unless_claimed.enter_context(open_log(self._folder, name))
                is_free = try_lock(log.fileno()) and not is_in_use(self._folder / name)
            except OSError as error:
                raise ConfigError(
                    f"{self._folder} cannot be written ({error}): make it writable, or choose another folder"
                ) from error
            if is_free:
                unless_claimed.pop_all()
                return log
        return None

    def _collect(self) -> None:
        for name, (process, log) in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[name]
            log.close()
            is_stopped = code < 0 or code in (Exit.PREEMPTED, Exit.HUNG)
            # Somebody may have started the same run by hand.
            is_refused = code == Exit.WRONG_CONFIG and is_in_use(self._folder / name)
            if self._is_stopped or not (is_stopped or is_refused) or self._num_starts[name] >= _MOST_STARTS:
                self._end(name, code, meaning(code))
            else:
                say(f"{name}: {meaning(code)}, starts again")
                self._waiting.append(name)

    def _end(self, name: str, code: int, what: str) -> None:
        self.codes[name] = code
        say(f"{name}: {what} ({len(self.codes)} of {len(self._commands)})")


def open_log(folder: Path, name: str) -> IO[bytes]:
    """The log of a point, to be appended to; its lock is that of the point. Raises: OSError."""
    (folder / LOGS_FOLDER).mkdir(parents=True, exist_ok=True)
    return _log(folder, name).open("ab")


def _log(folder: Path, name: str) -> Path:
    return folder / LOGS_FOLDER / f"{name}.log"


def is_in_use(run_dir: Path) -> bool:
    """Whether a process is training the run in `run_dir`, as far as locks of files show it."""
    try:
        file = os.open(run_dir / LOCK_FILE, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return False
    try:
        return not try_lock(file)
    finally:
        os.close(file)


_MEANINGS: Mapping[int, str] = {
    Exit.FINISHED: "finished",
    Exit.WRONG_CONFIG: "wrong configuration",
    Exit.PREEMPTED: "stopped",
    Exit.HUNG: "hung",
    Exit.DIVERGED: "diverged",
    Exit.INTERRUPTED: "stopped without saving",
}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # A real-time signal.
        return f"signal {number}"


def meaning(code: int) -> str:
    """What the exit code of `gnp-scale train` means, in a few words."""
    if code < 0:
        return f"killed by {_signal_name(-code)}"
    return _MEANINGS.get(code, "failed") + (f", exit code {code}" if code else "")
