"""A progress bar over bytes, with the rate and the remaining time."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from gnp_scale.run.console import make_console


def byte_progress(console: Console | None = None) -> Progress:
    """A display for one bar or several, on `console` (standard error when None)."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=console or make_console(stderr=True))


@contextlib.contextmanager
def progress_of(what: str, num_bytes: int | None) -> Iterator[Callable[[int, int], None]]:
    """Shows a bar of `num_bytes` (None: not known); yields a function of a number of images and of their bytes."""
    num_done = 0
    with byte_progress() as progress:
        task = progress.add_task(what, total=num_bytes)

        def advance(num_images: int, bytes_done: int) -> None:
            nonlocal num_done
            num_done += num_images
            progress.update(task, advance=bytes_done, description=f"{what}: {num_done} images")

        yield advance
