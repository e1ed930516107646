"""The only path of metrics: device -> host -> run folder and terminal."""

from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from gnp_scale.monitoring.metrics import MetricWriter
from gnp_scale.monitoring.progress import ProgressBar
from gnp_scale.monitoring.throughput import Throughput
from gnp_scale.resilience.divergence import HEALTH, Guard, Health

MAX_QUEUED_STEPS = 8
"""Number of steps that may be dispatched after the one whose metrics are read next."""
_QUEUED_MS = 100.0
"""How long they may keep a device busy: a stop waits for them, and after a bad step they are wasted."""


class _Held(NamedTuple):
    step: int
    metrics: Mapping[str, jax.Array]
    is_logged: bool


class Reporter:
    """Holds the metrics of the last steps on the devices, and reads those of a step some steps later.

    So a device has work while the host does something else. For a step that is not logged, one scalar is read: its
    health. Until the first step is logged, one step is queued; then as many as take `_QUEUED_MS`, at least 1 and at
    most `MAX_QUEUED_STEPS`. That number is the same in every process, so that all decide at the same step.
    """

    def __init__(
        self,
        writer: MetricWriter,
        bar: ProgressBar,
        throughput: Throughput,
        guard: Guard,
        observe: Callable[[int, float], None],
        broadcast: Callable[[int], int],
    ) -> None:
        """`observe(step, loss)` takes the loss of each logged step; `broadcast` is that of `consensus.py`."""
        self._writer, self._bar, self._throughput, self._guard, self._observe = writer, bar, throughput, guard, observe
        self._held: deque[_Held] = deque()
        self._num_queued, self._broadcast = 1, broadcast

    def hold(self, step: int, metrics: Mapping[str, jax.Array], *, is_logged: bool) -> None:
        """Takes the device scalars of a step that was just dispatched, and reads those of an earlier one.

        Raises:
            DivergedError: the run cannot continue from the state after the step that was read. Later steps are
                discarded.
        """
        self._held.append(_Held(step, metrics, is_logged))
        while len(self._held) > self._num_queued:
            self._read(*self._held.popleft())

    def release(self) -> None:
        """Reads all metrics that are held: after it, the host knows that every step was good. See `hold`."""
        while self._held:
            self._read(*self._held.popleft())

    def _read(self, step: int, metrics: Mapping[str, jax.Array], is_logged: bool) -> None:
        """Waits for `step`, and reports it if it is a logged step or is not finite."""
        health = Health(int(jax.device_get(metrics[HEALTH])))
        scalars = {}
        measured = self._throughput.read(step) if is_logged else {}
        if is_logged or health != Health.GOOD:
            numbers = jax.device_get({name: value for name, value in metrics.items() if name != HEALTH})
            scalars = {name: float(value) for name, value in numbers.items()}
            self.report(step, scalars | measured)
        self._guard.judge(step, health, scalars)
        if is_logged:
            # If the only pass is perturbed, there is no other loss.
            self._observe(step, scalars["train/loss" if "train/loss" in scalars else "train/loss_perturbed"])
            num_steps = int(_QUEUED_MS / measured["perf/step_ms"])
            self._num_queued = self._broadcast(max(1, min(MAX_QUEUED_STEPS, num_steps)))

    def report(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes and shows numbers that are already on the host."""
        self._writer.write(step, scalars)
        self._bar.report(step, scalars)
