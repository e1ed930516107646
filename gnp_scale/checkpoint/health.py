"""The health gate: a checkpoint is good once training has gone on soundly from it."""

import math
import statistics
from collections import deque

_NUM_LOSSES = 50
"""Losses that the running median is taken of."""


class HealthGate:
    """Holds new checkpoints back until so many reported losses in a row, after the checkpoint, were sound.

    A loss is sound if it is finite and at most `spike_factor` times the median of the last finite ones. One that is not
    starts every count anew: parameters that are not finite never pass, others do once the loss is back.
    """

    def __init__(self, num_reports: int, spike_factor: float) -> None:
        self._num_reports, self._spike_factor = num_reports, spike_factor
        self._num_sound: dict[int, int] = {}
        self._losses: deque[float] = deque(maxlen=_NUM_LOSSES)

    def add(self, step: int) -> None:
        """Holds back the checkpoint of `step`."""
        self._num_sound[step] = 0

    def drop(self, step: int) -> None:
        """Forgets the checkpoint of `step`, if it is held."""
        self._num_sound.pop(step, None)

    def observe(self, step: int, loss: float) -> list[int]:
        """Takes the loss that was reported for `step`; returns the checkpoints that pass, oldest first."""
        is_sound = self._is_sound(loss)
        for saved in self._num_sound:
            # The loss of a step is taken at the parameters before its update, those of the checkpoint before.
            if saved < step:
                self._num_sound[saved] = self._num_sound[saved] + 1 if is_sound else 0
        passed = sorted(
            saved for saved, count in self._num_sound.items() if saved < step and count >= self._num_reports
        )
        for saved in passed:
            self.drop(saved)
        return passed

    def _is_sound(self, loss: float) -> bool:
        if not math.isfinite(loss):
            return False
        is_spike = bool(self._losses) and loss > self._spike_factor * statistics.median(self._losses)
        self._losses.append(loss)
        return not is_spike
