"""An error of a save is raised, and told in one line. Orbax and TensorStore print it as well, many times."""

import logging
import sys
from collections.abc import Callable
from typing import Any


def print_errors_once() -> None:
    """Leaves out what they print, in this process from now on."""
    # Orbax logs a traceback in every thread that sees an error.
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    sys.unraisablehook = without_late_writes(sys.unraisablehook)


def without_late_writes(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """`sys.unraisablehook` without the writes of a failed save that end after it: TensorStore has an error for each."""

    def show(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            hook(unraisable)

    return show
