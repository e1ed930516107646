"""Messages of the main process during a run, on standard error."""

import contextlib

from rich.console import RenderableType

from gnp_scale.run.console import make_console
from gnp_scale.run.processes import is_main_process

console = make_console(stderr=True)


def announce(message: str) -> None:
    """Prints a message once, from the main process."""
    if is_main_process():
        show(message)


def show(what: RenderableType) -> None:
    """Prints above the bar, if there is one; a failed print does not end training."""
    with contextlib.suppress(OSError, ValueError):
        console.print(what, soft_wrap=isinstance(what, str))
