"""Messages of the main process during a run, on standard error."""

import contextlib

from rich.console import RenderableType

from gnp_scale.run.console import make_console
from gnp_scale.run.processes import is_main_process

console = make_console(stderr=True)

_MOST_CHARACTERS = 600
"""Of an error that is told whole. Those of JAX and of this project have fewer, those of stores may have thousands."""


def announce(message: str) -> None:
    """Prints a message once, from the main process."""
    if is_main_process():
        show(message)


def show(what: RenderableType) -> None:
    """Prints above the bar, if there is one; a failed print does not end training."""
    with contextlib.suppress(OSError, ValueError):
        console.print(what, soft_wrap=isinstance(what, str))


def one_line(error: Exception) -> str:
    """An error in one line, without what JAX adds about tracebacks; of a very long one the beginning and the end."""
    text = " ".join(str(error).partition("\n---")[0].split()) or type(error).__name__
    return f"{text[:80]} ... {text[-120:]}" if len(text) > _MOST_CHARACTERS else text
