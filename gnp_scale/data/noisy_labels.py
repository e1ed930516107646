"""Records of a source with some labels replaced; N records, K classes."""

from dataclasses import dataclass

import numpy as np

from gnp_scale.data.containers.record import Ids, Record, Source


@dataclass(frozen=True)
class NoisyLabels:
    """The records of `source`, with `shifts` (int32 N) added to their labels modulo K = `num_classes`."""

    source: Source
    shifts: np.ndarray
    num_classes: int

    def __len__(self) -> int:
        return len(self.source)

    def read(self, ids: Ids) -> list[Record]:
        """The records `ids`, as `Source.read`."""
        records = self.source.read(ids)
        label_B = self._replaced(np.array([record.label for record in records]), self.shifts[ids])
        return [record._replace(label=int(label)) for record, label in zip(records, label_B, strict=True)]

    def labels(self) -> np.ndarray:
        """The labels of all records, as `Source.labels`."""
        return self._replaced(self.source.labels(), self.shifts)

    def _replaced(self, label_N: np.ndarray, shift_N: np.ndarray) -> np.ndarray:
        return np.where(label_N < 0, label_N, (label_N + shift_N) % self.num_classes)
