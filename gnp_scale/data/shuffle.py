"""The order of the examples: that of Grain's `MapDataset.range(n).seed(seed).shuffle().repeat()`.

Grain computes one example at a time, in about 10 us of Python, which blocks all other threads of the process. Here the
same integer arithmetic is done on arrays. Each epoch has its own permutation: a block cipher (Simon, IACR ePrint
2013/404, with 4 rounds and keys from `std::seed_seq`) over the next power of 4. A value that is not the index of an
example is encrypted again until it is.
"""

from functools import lru_cache
from typing import NamedTuple, Self

import numpy as np

_NUM_ROUNDS = 4
_MIN_BLOCK_BITS = 16
_MASK_32 = 2**32 - 1

type _Keys = tuple[int, ...]


def examples_at(seed: int, num_examples: int, place: np.ndarray) -> np.ndarray:
    """Example (int64) at each position (int64) of an endless stream in which every epoch has each example once."""
    epoch, place_in_epoch = np.divmod(place, num_examples)
    first_seed, example = _seed_of_first_epoch(seed), np.empty_like(place)
    for number in np.unique(epoch):
        is_here = epoch == number
        example[is_here] = _permuted(place_in_epoch[is_here], num_examples, (first_seed + int(number)) % 2**32)
    return example


def _permuted(place: np.ndarray, num_examples: int, epoch_seed: int) -> np.ndarray:
    if num_examples == 1:
        return place
    if num_examples <= 2**_MIN_BLOCK_BITS:
        return _small_epoch(num_examples, epoch_seed)[place]
    cipher = _Cipher.of(num_examples, epoch_seed)
    example = cipher.encrypt(place)
    while len(outside := np.flatnonzero(example >= num_examples)):
        example[outside] = cipher.encrypt(example[outside])
    return example


@lru_cache(maxsize=8)
def _small_epoch(num_examples: int, epoch_seed: int) -> np.ndarray:
    """All of an epoch. Few examples cover little of the cipher's range, so most need many encryptions."""
    target = _Cipher.of(num_examples, epoch_seed).encrypt(np.arange(2**_MIN_BLOCK_BITS))
    while np.any(target[:num_examples] >= num_examples):
        # This doubles the number of encryptions for values that are still outside.
        target = np.where(target < num_examples, target, target[target])
    return target[:num_examples]


class _Cipher(NamedTuple):
    num_bits: int
    """Bits of a word, which is half a value."""
    rounds: tuple[np.ndarray, ...]
    """For each round, the effect of each word on the other."""

    @classmethod
    @lru_cache(maxsize=8)
    def of(cls, num_examples: int, epoch_seed: int) -> Self:
        """The cipher of an epoch.

        For 2^k + 1 examples with even k, Grain's cipher is over 2^k values, and draws the one of example 0 twice. So
        does this.
        """
        num_bits = -(-max(int(np.ceil(np.log2(num_examples - 1))), _MIN_BLOCK_BITS) // 2)
        mask = 2**num_bits - 1
        word = np.arange(mask + 1)
        once, twice, eight_times = ((word << by | word >> num_bits - by) & mask for by in (1, 2, 8))
        return cls(num_bits, tuple(once & eight_times ^ twice ^ key & mask for key in _round_keys(epoch_seed)))

    def encrypt(self, value: np.ndarray) -> np.ndarray:
        mask = 2**self.num_bits - 1
        left, right = value >> self.num_bits & mask, value & mask
        for mixed_left, mixed_right in zip(self.rounds[::2], self.rounds[1::2], strict=True):
            left ^= mixed_left[right]
            right ^= mixed_right[left]
        return left << self.num_bits | right


def _seed_of_first_epoch(seed: int) -> int:
    """As Grain derives it for the transformation next to `.seed(seed)`."""
    return int(np.random.SeedSequence([seed, 1]).generate_state(1)[0])


def _round_keys(seed: int) -> _Keys:
    """The output of `std::seed_seq{seed}.generate` (C++17, [rand.util.seedseq]), with one number for each round."""
    size = _NUM_ROUNDS
    keys = [0x8B8B8B8B] * size

    def mixed(x: int) -> int:
        return x ^ x >> 27

    for k in range(size):
        before, middle, after = (k - 1) % size, (k + 1) % size, (k + 2) % size
        r1 = 1664525 * mixed(keys[k] ^ keys[middle] ^ keys[before]) & _MASK_32
        r2 = r1 + (1 if k == 0 else k + seed if k == 1 else k) & _MASK_32
        keys[middle] = keys[middle] + r1 & _MASK_32
        keys[after] = keys[after] + r2 & _MASK_32
        keys[k] = r2
    for k in range(size, 2 * size):
        this, before, middle, after = k % size, (k - 1) % size, (k + 1) % size, (k + 2) % size
        r3 = 1566083941 * mixed(keys[this] + keys[middle] + keys[before] & _MASK_32) & _MASK_32
        r4 = r3 - this & _MASK_32
        keys[middle] ^= r3
        keys[after] ^= r4
        keys[this] = r4
    return tuple(keys)
