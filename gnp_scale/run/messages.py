"""What the main process tells a person while a run goes on, on standard error."""

import contextlib

from rich.console import RenderableType

from gnp_scale.run.console import make_console
from gnp_scale.run.processes import is_main_process

console = make_console(stderr=True)


def announce(message: str) -> None:
    """Says something once, from the main process."""
    if is_main_process():
        show(message)


def show(what: RenderableType) -> None:
    """Prints above the bar, if there is one; training does not end because nobody can read it."""
    with contextlib.suppress(OSError, ValueError):
        console.print(what, soft_wrap=isinstance(what, str))
