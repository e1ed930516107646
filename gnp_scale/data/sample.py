"""Some records of a split, read at most once: by them it is known again, and its size in another form is estimated."""

import hashlib
from functools import cached_property

from gnp_scale.config import check
from gnp_scale.data.containers.byte_ranges import ByteRanges
from gnp_scale.data.containers.record import Record, Source
from gnp_scale.data.dataset import evenly_spaced
from gnp_scale.data.encode import Encoding

_NUM_SAMPLED = 256


class Sample:
    """Evenly spaced records of a split, the same at each start."""

    def __init__(self, split: str, source: Source) -> None:
        self._split, self._source = split, source

    @cached_property
    def _records(self) -> list[Record]:
        return self._source.read(evenly_spaced(len(self._source), _NUM_SAMPLED))

    def digest(self) -> str:
        """Of the index of all records, with their checksums, or of the sampled ones if there is none.

        Raises:
            ConfigError: a sampled record is damaged.
        """
        digest = hashlib.sha256(repr(len(self._source)).encode())
        if isinstance(self._source, ByteRanges):
            for name, array in sorted(self._source.arrays.items()):
                digest.update(name.encode() + array.tobytes())
            return digest.hexdigest()
        for record in self._records:
            check_usable(self._split, record)
            digest.update(repr((record.name, record.label, len(record.data))).encode() + record.data)
        return digest.hexdigest()

    def estimated_bytes(self, encoding: Encoding) -> int:
        """Of all records of the split, encoded so."""
        sizes = [len(encoding.resized(record.data)) for record in self._records]
        return len(self._source) * sum(sizes) // len(sizes)


def check_usable(split: str, record: Record) -> None:
    """Raises ConfigError if the bytes of a record are not those of its index, or if there are none."""
    flaw = record.flaw()
    check(
        not flaw,
        f"{split} {record.name} cannot be used: {flaw}; mend it, or remove it and run gnp-scale data index SOURCE",
    )
