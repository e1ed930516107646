"""The one way of metrics out of a run: device -> host -> run folder and terminal."""

import math
from collections.abc import Mapping

import jax

from gnp_scale.metrics import DelayedMetrics, MetricWriter
from gnp_scale.progress import ProgressBar
from gnp_scale.throughput import Throughput


class DivergedError(RuntimeError):
    """The loss is not finite any more."""


class Reporter:
    """Holds the metrics of a step until the next one is dispatched, and then writes and shows them."""

    def __init__(self, writer: MetricWriter, bar: ProgressBar, throughput: Throughput) -> None:
        self._writer, self._bar, self._throughput = writer, bar, throughput
        self._delayed = DelayedMetrics()

    def hold(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
        """Keeps device scalars to be reported by the next `release`."""
        self._delayed.push(step, metrics)

    def release(self) -> None:
        """Reads and reports what is held, if anything; waits for the step it came from.

        Raises:
            DivergedError: its loss is not finite.
        """
        held = self._delayed.flush()
        if held is not None:
            step, scalars = held
            self.report(step, scalars | self._throughput.read(step))
            losses = [scalars[name] for name in ("train/loss", "train/loss_perturbed") if name in scalars]
            if not all(map(math.isfinite, losses)):
                raise DivergedError(f"the loss of step {step} is {losses[0]}")

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes and shows numbers that are on the host already."""
        self._writer.write(step, scalars)
        self._bar.report(step, scalars)
