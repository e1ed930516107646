"""How fast training goes, and which part of the time is training: the metrics `perf/*`."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import jax

from gnp_scale import PROCESS_START_S
from gnp_scale.flops import peak_flops_per_s


class Throughput:
    """Measures the steps between two reports; see `read`.

    Whatever is not training stands inside `with throughput.paused(...):` (evaluation, saving), and fetching a batch
    inside `with throughput.waiting_for_data():`. Steps are dispatched asynchronously, so a window is honest only if it
    begins and ends where the host has waited for the device: read the metrics of the last step before a report.
    """

    def __init__(self, start_step: int, batch_size: int, flops_per_pass: int) -> None:
        self._batch_size = batch_size
        self._flops_per_pass = flops_per_pass
        self._num_passes = 0.0
        self._step = start_step
        self._window_start_s = time.perf_counter()
        self._paused_s = 0.0
        self._waited_s = 0.0
        self._trained_s = 0.0

    def count(self, num_passes: float) -> None:
        """Counts the passes of one more step, for `perf/mfu`."""
        self._num_passes += num_passes

    @contextlib.contextmanager
    def paused(self, after: Any) -> Iterator[None]:
        """Time inside belongs to no step; it begins when `after`, the arrays of the last one, are computed."""
        jax.block_until_ready(after)
        start_s = time.perf_counter()
        yield
        self._paused_s += time.perf_counter() - start_s

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Time inside belongs to the steps, and is reported as `perf/data_wait_ms` too."""
        start_s = time.perf_counter()
        yield
        self._waited_s += time.perf_counter() - start_s

    def read(self, step: int) -> dict[str, float]:
        """The metrics of the steps since the last call, the last of which is `step`; begins a new window.

        * `perf/step_ms`, `perf/data_wait_ms`: milliseconds a step, and the part of them spent waiting for a batch;
        * `perf/images_per_s`: over all devices;
        * `perf/goodput`: seconds in training steps / seconds since the process started;
        * `perf/mfu`: FLOPs of a step / (seconds of a step * devices * peak FLOP/s); absent where the peak is unknown.
        """
        assert step > self._step, f"no step between {self._step} and {step}"
        now_s = time.perf_counter()
        num_steps = step - self._step
        window_s = now_s - self._window_start_s - self._paused_s
        step_s = window_s / num_steps
        self._trained_s += window_s
        metrics = {
            "perf/images_per_s": self._batch_size / step_s,
            "perf/step_ms": 1000 * step_s,
            "perf/data_wait_ms": 1000 * self._waited_s / num_steps,
            "perf/goodput": self._trained_s / (now_s - PROCESS_START_S),
        }
        metrics |= _utilisation(self._flops_per_pass * self._num_passes / window_s)
        self._step, self._window_start_s = step, now_s
        self._num_passes = self._paused_s = self._waited_s = 0.0
        return metrics


def _utilisation(flops_per_s: float) -> dict[str, float]:
    peak = peak_flops_per_s(jax.devices()[0].device_kind)
    return {} if peak is None else {"perf/mfu": flops_per_s / (jax.device_count() * peak)}
