"""The stream of batches: a function of only seed and step, on any mesh, with every example counted once."""

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gnp_scale.config import ConfigError, DataConfig
from gnp_scale.data.dataset import Dataset, Split
from gnp_scale.data.pipeline import (
    batch_indices,
    check_divisible,
    eval_batches,
    num_eval_batches,
    row_bounds,
    train_batches,
    train_rows,
)
from gnp_scale.mesh import batch_spec, sharding

MESHES = {"1x1x1": (1, 1, 1), "1x8x1": (1, 8, 1), "8x1x1": (8, 1, 1), "4x2x1": (4, 2, 1), "2x2x2": (2, 2, 2)}
NUM_EXAMPLES = 37


def numbered_split(num_examples: int = NUM_EXAMPLES) -> Split:
    """Images and labels that identify the example."""
    label_N = np.arange(num_examples, dtype=np.int32)
    return Split(np.broadcast_to(label_N[:, None, None, None], (num_examples, 2, 3, 1)).astype(np.uint8), label_N)


@pytest.fixture
def dataset() -> Dataset:
    return Dataset("numbered", numbered_split(), numbered_split(), NUM_EXAMPLES, (0.0,), (1.0,))


@pytest.fixture
def config() -> DataConfig:
    return DataConfig(batch_size=16, eval_batch_size=16)


def wait_until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def labels(batches) -> list[list[int]]:
    return [np.asarray(jax.device_get(batch["label"])).tolist() for batch in batches]


def test_a_batch_far_away_comes_at_once():
    batch_indices(0, 1_200_000, 4096, 0)
    start = time.perf_counter()
    chosen = batch_indices(0, 1_200_000, 4096, step=10**9)
    assert time.perf_counter() - start < 1
    assert chosen.shape == (4096,)
    assert len(set(chosen.tolist())) == 4096


@settings(max_examples=40, deadline=None)
@given(num_examples=st.integers(1, 60), batch_size=st.integers(1, 80), seed=st.integers(0, 2**32 - 1))
def test_every_epoch_holds_every_example_once(num_examples: int, batch_size: int, seed: int):
    num_epochs = 3
    num_steps = -(-num_examples * num_epochs // batch_size)
    stream = np.concatenate([batch_indices(seed, num_examples, batch_size, step) for step in range(num_steps)])
    epochs = stream[: num_epochs * num_examples].reshape(num_epochs, num_examples)
    np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_examples), (num_epochs, 1)))


def test_the_order_changes_with_epoch_and_seed():
    first, second = (batch_indices(3, 100, 100, epoch) for epoch in (0, 1))
    assert not np.array_equal(first, second)
    # Neighbouring seeds must not share epochs. They would if the seed of an epoch were seed + epoch.
    others = [batch_indices(4, 100, 100, epoch) for epoch in range(3)]
    assert not any(np.array_equal(mine, other) for mine in (first, second) for other in others)


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
def test_the_stream_does_not_depend_on_mesh_or_start(shape: tuple[int, int, int], dataset, config, set_mesh):
    set_mesh(*shape)
    expected = [batch_indices(7, NUM_EXAMPLES, 16, step).tolist() for step in range(6)]
    assert labels(train_batches(dataset, config, seed=7, start_step=0, num_steps=6)) == expected
    assert labels(train_batches(dataset, config, seed=7, start_step=4, num_steps=2)) == expected[4:]


def test_each_example_of_a_batch_may_occur_several_times(dataset, set_mesh):
    """The distinct examples of the repeated stream are those of the stream of smaller batches."""
    set_mesh()
    config = DataConfig(batch_size=16, eval_batch_size=16, num_repeats=2)
    expected = [2 * batch_indices(7, NUM_EXAMPLES, 8, step).tolist() for step in range(3, 6)]
    assert labels(train_batches(dataset, config, seed=7, start_step=3, num_steps=3)) == expected


def test_batches_are_global_arrays_spread_over_the_examples(dataset, config, set_mesh):
    set_mesh(2, 2, 2)
    with jax.transfer_guard("disallow"):
        (batch,) = train_batches(dataset, config, seed=0, start_step=5, num_steps=1)
    assert {name: (x.shape, x.dtype) for name, x in batch.items()} == {
        "image": ((16, 2, 3, 1), np.uint8),
        "label": ((16,), np.int32),
    }
    for x in batch.values():
        assert x.sharding == sharding(batch_spec(x.ndim))
    np.testing.assert_array_equal(jax.device_get(batch["image"])[:, 1, 2, 0], jax.device_get(batch["label"]))


def test_rows_that_devices_share_are_read_once(config, set_mesh):
    num_reads = Counter()

    class CountingLabels(np.ndarray):
        def __getitem__(self, chosen):
            num_reads.update(np.atleast_1d(chosen).tolist())
            return np.asarray(self)[chosen]

    split = numbered_split()
    counted = Split(split.image, split.label.view(CountingLabels))
    set_mesh(1, 4, 2)
    labels(train_batches(Dataset("counted", counted, split, 37, (0.0,), (1.0,)), config, 0, 0, 1))
    assert num_reads == Counter(batch_indices(0, NUM_EXAMPLES, 16, 0).tolist())


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (slice(0, 4), {(0, 4), (4, 8)}),
        (slice(4, 8), {(8, 12), (12, 16)}),
        (slice(2, 3), {(4, 8)}),
    ],
)
def test_a_process_reads_only_the_rows_of_its_devices(devices: slice, expected: set, set_mesh):
    mesh = set_mesh(2, 2, 2)
    assert set(row_bounds(sharding(batch_spec()), 16, mesh.devices.ravel()[devices]).values()) == expected


@pytest.mark.parametrize("shape", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("num_examples", [1, 16, 17, 37])
def test_evaluation_sees_every_example_once(shape, num_examples: int, config, set_mesh):
    set_mesh(*shape)
    batches = [jax.device_get(batch) for batch in eval_batches(numbered_split(num_examples), config)]
    assert len(batches) == -(-num_examples // 16)
    seen = np.concatenate([batch["label"][batch["mask"] == 1] for batch in batches])
    np.testing.assert_array_equal(seen, np.arange(num_examples))
    assert {batch["label"].shape for batch in batches} == {(16,)}
    assert sum(batch["mask"].sum() for batch in batches) == num_examples


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("batch_size", DataConfig(batch_size=12, eval_batch_size=16)),
        ("eval_batch_size", DataConfig(batch_size=16, eval_batch_size=12)),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused_at_once(name: str, config: DataConfig, dataset, set_mesh):
    set_mesh(2, 4, 1)
    expected = rf"^data\.{name} 12 is not divisible by the 8 devices .*: make it a multiple of 8, or change --mesh$"
    for call in (lambda: check_divisible(config), lambda: train_batches(dataset, config, 0, 0, 1)):
        with pytest.raises(ConfigError, match=expected):
            call()
    if name == "eval_batch_size":
        with pytest.raises(ConfigError, match=expected):
            eval_batches(dataset.test, config)
    else:
        assert len(list(eval_batches(dataset.test, config))) == num_eval_batches(dataset.test, config)


def test_the_tensor_axis_does_not_share_examples(set_mesh):
    set_mesh(1, 2, 4)
    check_divisible(DataConfig(batch_size=2, eval_batch_size=6))


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_closing_ends_the_threads(num_taken: int, dataset, config, set_mesh):
    set_mesh(1, 8, 1)
    before = set(threading.enumerate())
    batches = train_batches(dataset, config, seed=0, start_step=0, num_steps=10**6)
    for _ in range(num_taken):
        next(batches)
    assert num_taken == 0 or set(threading.enumerate()) - before
    batches.close()
    wait_until(lambda: set(threading.enumerate()) <= before)
    assert set(threading.enumerate()) <= before


def test_a_failed_read_reaches_the_consumer(config, set_mesh):
    set_mesh(1, 8, 1)
    split = numbered_split()
    shorter = Split(split.image[:5], split.label)
    with pytest.raises(IndexError):
        list(train_batches(Dataset("short", shorter, split, 37, (0.0,), (1.0,)), config, 0, 0, 3))


def test_the_batches_before_a_failed_read_are_delivered(dataset, config, set_mesh):
    """Even if the failure is there before they are asked for."""
    set_mesh()
    has_failed = threading.Event()

    class Failing(Split):
        def read(self, chosen_B, draw_BxD):
            if chosen_B.tolist() == batch_indices(0, NUM_EXAMPLES, 16, 3).tolist():
                has_failed.set()
                raise OSError("gone")
            return super().read(chosen_B, draw_BxD)

    failing = Failing(dataset.train.image, dataset.train.label)
    batches = train_batches(replace(dataset, train=failing), config, 0, 1, 5)
    expected = [batch_indices(0, NUM_EXAMPLES, 16, step).tolist() for step in (1, 2)]
    seen = labels([next(batches)])
    assert has_failed.wait(5)
    seen += labels([next(batches)])
    assert seen == expected
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_batches_go_to_the_devices_before_they_are_asked_for(dataset, monkeypatch, set_mesh):
    placed, place = [], jax.make_array_from_process_local_data

    def noted(shardings, rows, shapes):
        batch = place(shardings, rows, shapes)
        # A thread of a stream that another test closed may still send its last batch, which has another size.
        if shapes["label"] == (5,):
            placed.append(batch)
        return batch

    monkeypatch.setattr(jax, "make_array_from_process_local_data", noted)
    set_mesh()
    batches = train_batches(dataset, DataConfig(batch_size=5, prefetch_steps=2), 0, 0, 100)
    next(batches)
    wait_until(lambda: len(placed) >= 3)
    time.sleep(0.05)
    batches.close()
    expected = [batch_indices(0, NUM_EXAMPLES, 5, step).tolist() for step in range(3)]
    assert sorted(labels(placed)) == sorted(expected)


def test_a_stream_keeps_no_batch(dataset, config, set_mesh):
    set_mesh()
    batches = train_batches(dataset, config, 0, 0, 100)
    for _ in range(3):
        taken = weakref.ref(next(batches)["image"])
        assert taken() is None
    batches.close()


def test_rows_on_the_host_are_those_of_the_batches(dataset, config, set_mesh):
    set_mesh(1, 8, 1)
    on_host = list(train_rows(dataset, config, seed=7, start_step=2, num_steps=3))
    assert {type(array) for rows in on_host for array in rows.values()} == {np.ndarray}
    assert labels(on_host) == labels(train_batches(dataset, config, seed=7, start_step=2, num_steps=3))


def test_a_stream_may_be_empty(dataset, config, set_mesh):
    set_mesh()
    assert list(train_batches(dataset, config, seed=0, start_step=3, num_steps=0)) == []
    assert list(eval_batches(numbered_split(0), config)) == []


def test_as_many_batches_as_asked_are_read_ahead(set_mesh):
    read = []

    class NotingLabels(np.ndarray):
        def __getitem__(self, chosen):
            read.append(len(chosen))
            return np.asarray(self)[chosen]

    split = numbered_split()
    noting = Split(split.image, split.label.view(NotingLabels))
    config = DataConfig(batch_size=4, prefetch_steps=3)
    set_mesh()
    batches = train_batches(Dataset("noting", noting, split, 37, (0.0,), (1.0,)), config, 0, 0, 100)
    next(batches)
    wait_until(lambda: len(read) >= 4)
    time.sleep(0.05)
    batches.close()
    assert read == [4] * 4
