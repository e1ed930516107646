"""Tables and progress bars: text is printed literally, and control sequences go only to terminals.

Not to those with `NO_COLOR` (https://no-color.org), which get what a file gets.
"""

import os

from rich.console import Console

_FORCING = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Environment variables that make Rich treat a file as a terminal, and write the frames of a bar into it."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Continues: the default of Rich ends the process."""

    def show_cursor(self, show: bool = True) -> bool:
        """Leaves the cursor as it is: a process that is killed could not show it again."""
        return False


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text unchanged: without markup, emoji codes or highlighting in paths and errors."""
    environ = {name: value for name, value in os.environ.items() if name not in _FORCING}
    force_terminal = False if environ.get("NO_COLOR") else None
    return _Console(
        stderr=stderr,
        force_terminal=force_terminal,
        markup=False,
        emoji=False,
        highlight=False,
        _environ=environ,
    )
