"""The health gate: a checkpoint is good when training has continued soundly after it."""

import math
import statistics
from collections import deque

_NUM_LOSSES = 50
"""Number of losses of the running median."""


class HealthGate:
    """Holds each new checkpoint until `num_reports` consecutive losses after it were sound.

    A loss is sound if it is finite and at most `spike_factor` times the median of the last finite losses. A loss that
    is not sound resets all counts. So parameters that are not finite never pass; others pass when the loss recovers.
    """

    def __init__(self, num_reports: int, spike_factor: float) -> None:
        self._num_reports, self._spike_factor = num_reports, spike_factor
        self._num_sound: dict[int, int] = {}
        self._losses: deque[float] = deque(maxlen=_NUM_LOSSES)

    def add(self, step: int) -> None:
        """Holds the checkpoint of `step`."""
        self._num_sound[step] = 0

    def drop(self, step: int) -> None:
        """Forgets the checkpoint of `step`, if it is held."""
        self._num_sound.pop(step, None)

    def observe(self, step: int, loss: float) -> list[int]:
        """Takes the reported loss of `step`; returns the checkpoints that pass, oldest first."""
        is_sound = self._is_sound(loss)
        for saved in self._num_sound:
            # The loss of a step belongs to the parameters before its update, which an earlier checkpoint holds.
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
