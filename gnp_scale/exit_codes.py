"""Exit codes, and what they mean for a launch script."""

from collections.abc import Iterable
from enum import IntEnum

from gnp_scale.config import ConfigError


class Exit(IntEnum):
    """Exit codes of `gnp-scale`. Start the same command again after any other code, including death by a signal.

    If process 0 of several dies at once, for example by SIGKILL, JAX ends the others with SIGABRT.
    """

    FINISHED = 0
    FAILED = 1
    """Any other error: a traceback, or one line if a device, a server or a store did not answer."""
    WRONG_CONFIG = 2
    """A restart does not help before something is changed."""
    PREEMPTED = 75
    """Stopped by a signal, with the state saved if there was time: start it again."""
    HUNG = 76
    """This process or another was late, silent or dead, or processes did not find each other: start it again."""
    DIVERGED = 77
    """The loss is no longer finite: a restart gives the same result."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C without saving: a second Ctrl-C while training, or Ctrl-C in another command."""


def exit_code(error: BaseException) -> Exit:
    """The exit code of a process that this error ends."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return Exit.WRONG_CONFIG if isinstance(error, ConfigError) else Exit.FAILED


def exit_code_of_all(codes: Iterable[int]) -> Exit:
    """The exit code of a command whose runs have ended with `codes`.

    It is `WRONG_CONFIG` if all failures are: a restart does not help then.
    """
    failures = set(codes) - {Exit.FINISHED}
    if not failures:
        return Exit.FINISHED
    return Exit.WRONG_CONFIG if failures == {Exit.WRONG_CONFIG} else Exit.FAILED
