"""What is being measured, and how far it is: lines for people who wait."""

import contextlib
import time
from collections.abc import Callable, Iterator

from gnp_scale.run.messages import announce
from gnp_scale.sharpness.examples import During

_EVERY_S = 10.0


def told(during: During, what: str, num_units: int, unit: str, clock: Callable[[], float] = time.monotonic) -> During:
    """`during`, of which each use is one of the `num_units` units of `what`.

    It says how many are done and about how long the others take, at most every ten seconds. The first unit, which
    compiles, does not count in the estimate.
    """
    announce(f"measuring {what}: {num_units} {unit}")
    num_done, first_s, told_s = 0, 0.0, clock()

    @contextlib.contextmanager
    def unit_of_work() -> Iterator[None]:
        nonlocal num_done, first_s, told_s
        with during():
            yield
        num_done, now_s = num_done + 1, clock()
        if num_done == 1:
            first_s = now_s
        elif now_s - told_s >= _EVERY_S and num_done < num_units:
            told_s = now_s
            left_s = (now_s - first_s) / (num_done - 1) * (num_units - num_done)
            announce(f"{what}: {num_done} of {num_units} {unit}, about {left_s:.0f} s left")

    return unit_of_work
