"""How fast training goes, and which part of the time is training: the metrics `perf/*`."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from gnp_scale.flops import peak_flops_per_s
from gnp_scale.goodput import Recorder
from gnp_scale.stages import Stage


class Throughput:
    """Measures the steps between two reports by the seconds of the stages; see `read`.

    A step is what passes in the stages TRAIN and DATA: whatever is not training stands inside
    `with throughput.paused(...)`, and fetching a batch inside `with throughput.waiting_for_data(...)`. Steps are
    dispatched asynchronously, so a window is honest only if it begins and ends where the host has waited for the
    device: read the metrics of the last step before a report.
    """

    def __init__(self, start_step: int, batch_size: int, flops_per_pass: int, recorder: Recorder) -> None:
        self._batch_size = batch_size
        self._flops_per_pass = flops_per_pass
        self._num_passes = 0.0
        self._step = start_step
        self._stages, self._recorder = recorder.stages, recorder
        self._trained_s, self._waited_s = self._seconds()
        self._is_first_step = True

    def count(self, num_passes: float, metrics: Any) -> None:
        """Counts the passes of one more step, whose metrics they are."""
        self._num_passes += num_passes
        if self._is_first_step:
            jax.block_until_ready(metrics)
            self._recorder.first_step_is_computed()
            self._is_first_step = False

    @contextlib.contextmanager
    def paused(self, stage: Stage, step: int, after: Any) -> Iterator[None]:
        """Time inside belongs to `stage`, and begins when `after`, the arrays of the last step, are computed."""
        jax.block_until_ready(after)
        with self._stages.enter(stage, step):
            yield

    @contextlib.contextmanager
    def waiting_for_data(self, step: int) -> Iterator[None]:
        """Time inside belongs to `step`, the one that the batch is for, and is reported by itself too."""
        with self._stages.enter(Stage.DATA, step):
            yield

    def read(self, step: int) -> dict[str, float]:
        """The metrics of the steps since the last call, the last of which is `step`; begins a new window.

        * `perf/step_ms`, `perf/data_wait_ms`: milliseconds a step, and the part of them spent waiting for a batch;
        * `perf/images_per_s`: over all devices;
        * `perf/goodput`: seconds in steps that were kept / seconds since the run first started, over all its starts;
        * `perf/mfu`: FLOPs of a step / (seconds of a step * devices * peak FLOP/s); absent where the peak is unknown.
        """
        assert step > self._step, f"no step between {self._step} and {step}"
        num_steps = step - self._step
        trained_s, waited_s = self._seconds()
        window_s = trained_s + waited_s - self._trained_s - self._waited_s
        metrics = {
            "perf/images_per_s": self._batch_size * num_steps / window_s,
            "perf/step_ms": 1000 * window_s / num_steps,
            "perf/data_wait_ms": 1000 * (waited_s - self._waited_s) / num_steps,
            "perf/goodput": self._recorder.life().goodput,
        }
        metrics |= _utilisation(self._flops_per_pass * self._num_passes / window_s)
        self._step, self._trained_s, self._waited_s, self._num_passes = step, trained_s, waited_s, 0.0
        return metrics

    def _seconds(self) -> tuple[float, float]:
        seconds = self._stages.now.total_s(time.perf_counter())
        return seconds[Stage.TRAIN], seconds[Stage.DATA]


def _utilisation(flops_per_s: float) -> dict[str, float]:
    peak = peak_flops_per_s(jax.devices()[0].device_kind)
    return {} if peak is None else {"perf/mfu": flops_per_s / (jax.device_count() * peak)}
