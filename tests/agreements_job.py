"""`test_consensus.py` runs this in several processes: a run that prints how often it waits for the others.

A line for each step, since the one before: how many values its main thread waited for in the coordination service, and
how many barriers all of its threads.
"""

import sys
import threading
from collections import Counter

from jax._src.lib import _jax

from gnp_scale import cli
from gnp_scale.resilience.preemption import StopRequest

VALUE, BARRIER = "blocking_key_value_get", "wait_at_barrier"
num_waits = Counter()


def count(name):
    """Replaces a method of all clients of the coordination service by one that counts its calls."""
    wait = getattr(_jax.DistributedRuntimeClient, name)

    def counted(*arguments, **options):
        num_waits[name] += name == BARRIER or threading.current_thread() is threading.main_thread()
        return wait(*arguments, **options)

    setattr(_jax.DistributedRuntimeClient, name, counted)


def main():
    reached = StopRequest.reached

    def told(self, step, batch=0):
        if batch <= 1:
            print(f"step {step}: {num_waits[VALUE]} values, {num_waits[BARRIER]} barriers", flush=True)
            num_waits.clear()
        return reached(self, step, batch)

    for name in (VALUE, BARRIER):
        count(name)
    StopRequest.reached = told
    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
