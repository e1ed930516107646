"""The stream of batches: the batch of step t follows from the seed and t alone, on any number of processes.

A stream is an endless row of places; batch t is the places t * B to (t + 1) * B. Each process reads the places whose
rows its own devices hold, some batches ahead, in threads.

B examples of the global batch.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from gnp_scale.config import DataConfig, check
from gnp_scale.data.sources import Dataset, Split
from gnp_scale.mesh import BATCH, batch_spec, current_axis_size, sharding

type Rows = dict[str, np.ndarray]
type Batch = dict[str, jax.Array]
type Batches = Generator[Batch, None, None]
type Bounds = tuple[int, int]


def train_batches(dataset: Dataset, config: DataConfig, seed: int, start_step: int, num_steps: int) -> Batches:
    """The `num_steps` batches of the steps `start_step`, `start_step + 1`, ... on the current mesh.

    Each is `image` (uint8 B x H x W x C) and `label` (int32 B), spread over the mesh axes of the examples. Closing the
    iterator ends its threads.

    Raises:
        ConfigError: the devices cannot share the batch equally.
    """
    check_divisible(config)
    split, ids = dataset.train, shuffled_ids(seed, len(dataset.train))

    def read(places: range) -> Rows:
        chosen = _examples_at(ids, places)
        return {"image": split.image[chosen], "label": split.label[chosen]}

    return _stream(read, range(start_step, start_step + num_steps), config.batch_size, config)


def eval_batches(split: Split, config: DataConfig) -> Batches:
    """All examples of `split` once, in order, in equally many batches on every process, on the current mesh.

    Each batch is `image`, `label` and `mask` (float32 B): 0 for what pads the last batch.

    Raises:
        ConfigError: the devices cannot share the batch equally.
    """
    check_divisible(config)
    num_examples = len(split)

    def read(places: range) -> Rows:
        place = np.arange(places.start, places.stop)
        chosen = np.minimum(place, num_examples - 1)
        mask = (place < num_examples).astype(np.float32)
        return {"image": split.image[chosen], "label": split.label[chosen], "mask": mask}

    num_batches = -(-num_examples // config.eval_batch_size)
    return _stream(read, range(num_batches), config.eval_batch_size, config)


def shuffled_ids(seed: int, num_examples: int) -> grain.MapDataset:
    """Example at each place of an endless stream, in O(1): every epoch is a permutation of its own of all examples."""
    ids = grain.MapDataset.range(num_examples).seed(seed).shuffle().repeat()
    # Grain makes what it keeps for each data set at the first access, which must not happen in several threads.
    _ = ids[0]
    return ids


def batch_indices(seed: int, num_examples: int, batch_size: int, step: int) -> np.ndarray:
    """Examples (int64 B) of the batch of `step`; a batch may end one epoch and begin the next."""
    return _examples_at(shuffled_ids(seed, num_examples), range(step * batch_size, (step + 1) * batch_size))


def _examples_at(ids: grain.MapDataset, places: range) -> np.ndarray:
    return np.array([ids[place] for place in places])


def check_divisible(config: DataConfig) -> None:
    """Checks that the devices of the current mesh that share the examples can share both kinds of batch equally.

    Raises:
        ConfigError: a batch size is not divisible.
    """
    num_shards = current_axis_size(BATCH)
    for name in ("batch_size", "eval_batch_size"):
        size = getattr(config, name)
        check(
            size % num_shards == 0,
            f"data.{name} {size} is not divisible by the {num_shards} devices that share the examples "
            f"(mesh axes {' x '.join(BATCH)}): make it a multiple of {num_shards}, or change --mesh",
        )


def row_bounds(rows: NamedSharding, batch_size: int, devices: Iterable[jax.Device]) -> dict[jax.Device, Bounds]:
    """First row and end of the rows of a batch that each of `devices` holds."""
    index_of = rows.devices_indices_map((batch_size,))
    return {device: index_of[device][0].indices(batch_size)[:2] for device in devices}


def _stream(read: Callable[[range], Rows], steps: range, batch_size: int, config: DataConfig) -> Batches:
    """Batches of `steps`, read ahead: `read` gives the entries at a range of places of the stream."""
    mesh = jax.sharding.get_mesh()
    bounds = row_bounds(sharding(batch_spec()), batch_size, mesh.local_devices)
    # Devices along the tensor axis hold the same rows, which are read once.
    distinct = sorted(set(bounds.values()))

    def read_step(step: int) -> list[Rows]:
        start = step * batch_size
        return [read(range(start + first, start + end)) for first, end in distinct]

    options = grain.ReadOptions(min(config.num_threads, config.prefetch_steps), config.prefetch_steps)
    batches = grain.MapDataset.range(steps.start, steps.stop).map(read_step).to_iter_dataset(options)

    def place_all() -> Batches:
        with contextlib.closing(iter(batches)) as parts_of_batches:
            for parts in parts_of_batches:
                rows_of = dict(zip(distinct, parts, strict=True))
                yield {
                    name: _place({bound: rows[name] for bound, rows in rows_of.items()}, batch_size, mesh)
                    for name in parts[0]
                }

    return place_all()


def _place(rows_of: Mapping[Bounds, np.ndarray], batch_size: int, mesh: jax.sharding.Mesh) -> jax.Array:
    """The global array of which this process's devices hold these rows, placed by explicit transfers."""
    shape = (batch_size, *next(iter(rows_of.values())).shape[1:])
    rows = NamedSharding(mesh, batch_spec(len(shape)))

    def of_device(index: Any) -> np.ndarray:
        return rows_of[index[0].indices(batch_size)[:2]]

    # The transfers to all devices are one call: one call a device takes six times as much of the host's time.
    with jax.transfer_guard_host_to_device("allow"):
        return jax.make_array_from_callback(shape, rows, of_device)
