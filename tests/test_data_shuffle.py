"""The order of the examples is exactly Grain's: a run folder of an earlier version resumes in the same stream."""

import grain
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gnp_scale.data.shuffle import examples_at

# Around each power of 4 the cipher's block size changes, and at 2^k + 1 Grain rounds its size down.
EDGES = [2**k + offset for k in range(15, 24) for offset in (-1, 0, 1, 2)]
NUM_EXAMPLES = st.one_of(st.integers(1, 100), st.integers(1, 14_197_122), st.sampled_from(EDGES))
SEEDS = st.integers(0, 2**32 - 1)


def of_grain(seed: int, num_examples: int, place: np.ndarray) -> np.ndarray:
    ids = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()
    return np.array([ids[each] for each in place.tolist()])


def assert_same(seed: int, num_examples: int, place: np.ndarray) -> None:
    np.testing.assert_array_equal(examples_at(seed, num_examples, place), of_grain(seed, num_examples, place))


@settings(max_examples=300, deadline=None)
@given(seed=SEEDS, num_examples=NUM_EXAMPLES, place=st.lists(st.integers(0, 2**45), min_size=1, max_size=20))
@example(seed=2**32 - 1, num_examples=1, place=[0, 2**45])
def test_any_places_are_those_of_grain(seed: int, num_examples: int, place: list[int]):
    assert_same(seed, num_examples, np.array(place))


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, num_examples=NUM_EXAMPLES, epoch=st.integers(1, 2**33))
@example(seed=0, num_examples=2**16 + 1, epoch=1)
def test_the_end_of_an_epoch_and_the_beginning_of_the_next_are_those_of_grain(seed, num_examples, epoch):
    """Seeds of epochs wrap around at 2^32."""
    assert_same(seed, num_examples, epoch * num_examples + np.arange(-10, 10))


@pytest.mark.parametrize("num_examples", [1437, 2**16, 2**16 + 2, 262_146])
def test_a_long_stretch_is_that_of_grain(num_examples: int):
    assert_same(7, num_examples, 2**31 + np.arange(2000))


def test_the_stream_is_the_one_of_the_first_version():
    """Golden order: Grain could change its order, and this code with it. Run folders need the old order."""
    assert examples_at(0, 1437, np.arange(1434, 1440)).tolist() == [1146, 1311, 979, 473, 345, 1]
    assert examples_at(2**32 - 1, 1_281_167, 2**40 + np.arange(4)).tolist() == [475421, 682431, 1157119, 803199]
