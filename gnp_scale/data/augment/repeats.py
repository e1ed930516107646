"""Repeated augmentation: which position of the stream each row of a batch reads.

N rows.
"""

import numpy as np


def repeated(place_N: np.ndarray, batch_size: int, num_repeats: int) -> np.ndarray:
    """Positions (int64) such that a batch has each of its examples `num_repeats` times (arXiv 1901.09335).

    Position n of the stream with repeats is position `repeated(n)` of the stream without. The repeats of an example lie
    `batch_size / num_repeats` rows apart, so mixing with the next row mixes different examples, and each row has a key,
    and with it an augmentation, of its own. `batch_size` must be a multiple of `num_repeats`.

    >>> repeated(np.arange(12), batch_size=6, num_repeats=2)
    array([0, 1, 2, 0, 1, 2, 3, 4, 5, 3, 4, 5])
    """
    step_N, row_N = np.divmod(place_N, batch_size)
    num_distinct = batch_size // num_repeats
    return step_N * num_distinct + row_N % num_distinct
