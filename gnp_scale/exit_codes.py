"""What an exit code tells a launch script."""

from enum import IntEnum

from gnp_scale.config import ConfigError


class Exit(IntEnum):
    """Exit codes of `gnp-scale`. Start the same command again after any other, a death by a signal included.

    When process 0 of several dies at once, by SIGKILL say, JAX ends the others with SIGABRT.
    """

    FINISHED = 0
    FAILED = 1
    """An error that nothing above stands for; the traceback tells."""
    WRONG_CONFIG = 2
    """Starting again does not help before something is changed."""
    PREEMPTED = 75
    """Stopped by a signal, with the state saved where there was time for it: start it again."""
    HUNG = 76
    """This process or another was late, silent or dead, or processes did not find each other: start it again."""
    DIVERGED = 77
    """The loss is not finite any more: a restart gives the same result."""
    INTERRUPTED = 130
    """Stopped by Ctrl-C with nothing saved: by a second one while training, or in another command."""


def exit_code(error: BaseException) -> Exit:
    """The exit code of a process that this error ends."""
    if isinstance(error, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return Exit.WRONG_CONFIG if isinstance(error, ConfigError) else Exit.FAILED
