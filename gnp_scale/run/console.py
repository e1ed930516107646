"""Tables and bars for people: what is printed is literal, and control sequences go to terminals alone."""

import os

from rich.console import Console

_FORCING = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Environment variables by which Rich would take a file for a terminal, and write the frames of a bar into it."""


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Goes on: by itself, Rich would end the process."""


def make_console(*, stderr: bool = False) -> Console:
    """A console that prints text as it is: paths and errors are no markup, no emoji codes and not highlighted."""
    environ = {name: value for name, value in os.environ.items() if name not in _FORCING}
    return _Console(stderr=stderr, markup=False, emoji=False, highlight=False, _environ=environ)
