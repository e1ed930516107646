"""Records of ArrayRecord shards, on a local disk or on gs://, which the library reads by itself.

The library reports no error when it opens a missing or damaged file: `ok()` and the number of records tell.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader

from gnp_scale.data.containers.recent import Recent, most_open_files
from gnp_scale.data.containers.record import Ids
from gnp_scale.data.formats import DamagedFileError

_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER_BYTES = 1 << 15


class ArrayRecords:
    """The bytes of the records in `paths`, which have `lengths` records; no shard is opened before it is read.

    A record whose hash does not match is an error of its own: the others of its shard can be read.
    """

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]) -> None:
        self.paths, self.lengths = tuple(paths), tuple(lengths)
        self._start_S = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self._readers = Recent(most_open_files(), self._opened)

    def __len__(self) -> int:
        return int(self._start_S[-1])

    def place(self, number: int) -> tuple[str, int]:
        """The shard of a record, and its number there."""
        shard = int(np.searchsorted(self._start_S, number, side="right")) - 1
        return self.paths[shard], number - int(self._start_S[shard])

    def read(self, ids: Ids) -> list[bytes | Exception]:
        """The records `ids`; an error in the place of each that is damaged.

        Raises:
            DamagedFileError: a shard is missing, truncated, or has another number of records.
        """
        shard_B = np.searchsorted(self._start_S, np.asarray(ids), side="right") - 1
        places = defaultdict(list)
        for row, (shard, number) in enumerate(zip(shard_B.tolist(), ids, strict=True)):
            places[shard].append((row, int(number) - int(self._start_S[shard])))
        found: list[bytes | Exception] = [b""] * len(ids)
        for shard, rows in places.items():
            for (row, _), record in zip(rows, self._read_shard(shard, [number for _, number in rows]), strict=True):
                found[row] = record
        return found

    def _read_shard(self, shard: int, numbers: list[int]) -> Sequence[bytes | Exception]:
        reader = self._readers.get(shard)
        try:
            return reader.read(numbers)
        except RuntimeError as error:
            if len(numbers) == 1:
                return [error]
            return [self._read_shard(shard, [number])[0] for number in numbers]

    def _opened(self, shard: int) -> ArrayRecordReader:
        reader = ArrayRecordReader(self.paths[shard], _RANDOM_ACCESS, file_reader_buffer_size=_BUFFER_BYTES)
        if not reader.ok():
            raise DamagedFileError(f"{self.paths[shard]} is missing or is not a whole ArrayRecord file")
        if reader.num_records() != self.lengths[shard]:
            raise DamagedFileError(
                f"{self.paths[shard]} holds {reader.num_records()} records, where {self.lengths[shard]} are due"
            )
        return reader
