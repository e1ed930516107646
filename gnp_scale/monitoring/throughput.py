"""The speed of training, and the fraction of time spent in it: the metrics `perf/*`."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from gnp_scale.monitoring.flops import peak_flops_per_s
from gnp_scale.run.recorder import Recorder
from gnp_scale.run.stages import Stage


class Throughput:
    """Measures the steps between two reports by the seconds of the stages; see `read`.

    The time of a step is the time in the stages TRAIN and DATA. Put other work inside `with throughput.paused(...)`,
    and fetching a batch inside `with throughput.waiting_for_data(...)`. Steps are dispatched asynchronously, so a
    window is valid only if it begins and ends when the host has waited for the device: read the metrics of its last
    step before a report. Later steps may already be dispatched.
    """

    def __init__(
        self,
        start_step: int,
        batch_size: int,
        flops_per_pass: Callable[[], int],
        num_passes: np.ndarray,
        recorder: Recorder,
    ) -> None:
        """`num_passes` has the passes of each step; FLOPs are computed only if the peak of the device is known."""
        self._batch_size, self._num_passes = batch_size, num_passes
        self._peak = peak_flops_per_s(jax.devices()[0].device_kind)
        self._flops_per_pass = 0 if self._peak is None else flops_per_pass()
        self._step, self._stages, self._history = start_step, recorder.stages, recorder.history
        self._trained_s, self._waited_s = self._seconds()

    @contextlib.contextmanager
    def paused(self, stage: Stage, step: int, after: Any) -> Iterator[None]:
        """Time inside belongs to `stage`, and begins when `after`, the arrays of the last step, are computed."""
        jax.block_until_ready(after)
        with self._stages.enter(stage, step):
            yield

    @contextlib.contextmanager
    def waiting_for_data(self, step: int) -> Iterator[None]:
        """Time inside belongs to `step`, which will use the batch, and is also reported separately."""
        with self._stages.enter(Stage.DATA, step):
            yield

    def read(self, step: int) -> dict[str, float]:
        """The metrics of the steps since the last call, the last of which is `step`; begins a new window.

        * `perf/step_ms`, `perf/data_wait_ms`: milliseconds per step, and the part of them spent waiting for a batch;
        * `perf/images_per_s`: over all devices;
        * `perf/goodput`: seconds in steps that were kept / seconds since the run first started, over all its starts;
        * `perf/mfu`: FLOPs of a step / (seconds of a step * devices * peak FLOP/s); absent if the peak is unknown.
        """
        assert step > self._step, f"no step between {self._step} and {step}"
        num_steps = step - self._step
        trained_s, waited_s = self._seconds()
        window_s = trained_s + waited_s - self._trained_s - self._waited_s
        metrics = {
            "perf/images_per_s": self._batch_size * num_steps / window_s,
            "perf/step_ms": 1000 * window_s / num_steps,
            "perf/data_wait_ms": 1000 * (waited_s - self._waited_s) / num_steps,
            "perf/goodput": self._history().goodput,
        }
        if self._peak is not None:
            num_flops = self._flops_per_pass * self._num_passes[self._step : step].sum()
            metrics["perf/mfu"] = num_flops / (window_s * jax.device_count() * self._peak)
        self._step, self._trained_s, self._waited_s = step, trained_s, waited_s
        return metrics

    def _seconds(self) -> tuple[float, float]:
        seconds = self._stages.now.total_s(time.perf_counter())
        return seconds[Stage.TRAIN], seconds[Stage.DATA]
