"""The one way of metrics out of a run: device -> host -> run folder and terminal."""

from collections.abc import Callable, Mapping

import jax

from gnp_scale.divergence import HEALTH, Guard, Health
from gnp_scale.metrics import MetricWriter
from gnp_scale.progress import ProgressBar
from gnp_scale.throughput import Throughput


class Reporter:
    """Holds the metrics of a step until the next one is dispatched, and only then reads them.

    So the device never waits for the host. Of a step that is not to be logged, one scalar is read: how it went.
    """

    def __init__(
        self,
        writer: MetricWriter,
        bar: ProgressBar,
        throughput: Throughput,
        guard: Guard,
        observe: Callable[[int, float], None],
    ) -> None:
        self._writer, self._bar, self._throughput, self._guard, self._observe = writer, bar, throughput, guard, observe
        self._held: tuple[int, Mapping[str, jax.Array], bool] | None = None

    def hold(self, step: int, metrics: Mapping[str, jax.Array], *, is_logged: bool) -> None:
        """Keeps device scalars to be read by the next `release`."""
        assert self._held is None, f"step {step} before the metrics of another were released"
        self._held = step, metrics, is_logged

    def release(self) -> None:
        """Reads what is held, if anything, and reports it if it is to be logged or is not finite; waits for its step.

        Raises:
            DivergedError: the run cannot go on from the state after that step.
        """
        if self._held is None:
            return
        (step, metrics, is_logged), self._held = self._held, None
        health = Health(int(jax.device_get(metrics[HEALTH])))
        scalars = {}
        if is_logged or health != Health.GOOD:
            numbers = jax.device_get({name: value for name, value in metrics.items() if name != HEALTH})
            scalars = {name: float(value) for name, value in numbers.items()}
            self.report(step, scalars | (self._throughput.read(step) if is_logged else {}))
        self._guard.judge(step, health, scalars)
        if is_logged:
            # Where the only pass is perturbed, there is no other loss.
            self._observe(step, scalars["train/loss" if "train/loss" in scalars else "train/loss_perturbed"])

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes and shows numbers that are on the host already."""
        self._writer.write(step, scalars)
        self._bar.report(step, scalars)
