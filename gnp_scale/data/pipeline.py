"""The stream of batches: the batch of step t depends only on the seed and t, on any number of processes.

A stream is endless; batch t has the positions t * B to (t + 1) * B. Each process reads the positions whose rows its own
devices hold, some batches ahead, in threads.

B examples of the global batch.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from gnp_scale.config import DataConfig, check
from gnp_scale.data.augment.repeats import repeated
from gnp_scale.data.crops import crop_draws
from gnp_scale.data.shuffle import examples_at
from gnp_scale.data.sources import UNREADABLE, Dataset, Examples, Rows
from gnp_scale.mesh import BATCH, batch_spec, current_axis_size, sharding

_NUM_READERS = 2
"""Batches that are read at the same time, so that a batch begins while the last images of another are decoded."""

type Batch = dict[str, jax.Array]
type Batches = Generator[Batch, None, None]
type Bounds = tuple[int, int]


def train_batches(dataset: Dataset, config: DataConfig, seed: int, start_step: int, num_steps: int) -> Batches:
    """The `num_steps` batches of the steps `start_step`, `start_step + 1`, ... on the current mesh.

    Each is `image` (uint8 B x H x W x C) and `label` (int32 B), sharded over the mesh axes of the examples. Closing the
    iterator ends its threads.

    Raises:
        ConfigError: the devices cannot share the batch equally.
    """
    check_divisible(config)
    split = dataset.train

    def read(step: int, row: np.ndarray) -> Rows:
        place = repeated(step * config.batch_size + row, config.batch_size, config.num_repeats)
        chosen = examples_at(seed, len(split), place)
        return split.read(chosen, crop_draws(seed, step, config.batch_size)[row])

    return _stream(read, range(start_step, start_step + num_steps), config.batch_size, config)


def eval_batches(split: Examples, config: DataConfig) -> Batches:
    """All examples of `split` once, in order, in equally many batches on every process, on the current mesh.

    Each batch is `image`, `label` and `mask` (float32 B), which is 0 for the padding of the last batch and for images
    that cannot be used.

    Raises:
        ConfigError: the devices cannot share the batch equally.
    """
    check_divisible(config)
    num_examples = len(split)

    def read(step: int, row: np.ndarray) -> Rows:
        place = step * config.eval_batch_size + row
        rows = split.read(np.minimum(place, num_examples - 1), None)
        counts = (place < num_examples) & (rows["label"] != UNREADABLE)
        return rows | {"label": np.maximum(rows["label"], 0), "mask": counts.astype(np.float32)}

    num_batches = -(-num_examples // config.eval_batch_size)
    return _stream(read, range(num_batches), config.eval_batch_size, config)


def batch_indices(seed: int, num_examples: int, batch_size: int, step: int) -> np.ndarray:
    """Examples (int64 B) of the batch of `step`; a batch may end one epoch and begin the next."""
    return examples_at(seed, num_examples, step * batch_size + np.arange(batch_size))


def check_divisible(config: DataConfig) -> None:
    """Checks that both batch sizes can be split equally over the devices of the current mesh.

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
    """Start and end of the rows of a batch that each of `devices` holds."""
    index_of = rows.devices_indices_map((batch_size,))
    return {device: index_of[device][0].indices(batch_size)[:2] for device in devices}


def _stream(read: Callable[[int, np.ndarray], Rows], steps: range, batch_size: int, config: DataConfig) -> Batches:
    """Batches of `steps`, read ahead: `read` returns the rows of a step that lie on this process."""
    mesh = jax.sharding.get_mesh()
    bounds = row_bounds(sharding(batch_spec()), batch_size, mesh.local_devices)
    # Devices along the tensor axis hold the same rows, which are read once.
    distinct = sorted(set(bounds.values()))
    row = np.concatenate([np.arange(*bound) for bound in distinct])

    def read_step(step: int) -> Rows:
        return read(step, row)

    options = grain.ReadOptions(min(_NUM_READERS, config.prefetch_steps), config.prefetch_steps)
    batches = grain.MapDataset.range(steps.start, steps.stop).map(read_step).to_iter_dataset(options)

    def place(rows: np.ndarray) -> jax.Array:
        shape = (batch_size, *rows.shape[1:])
        spec = NamedSharding(mesh, batch_spec(len(shape)))
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_process_local_data(spec, rows, shape)

    def place_all() -> Batches:
        with contextlib.closing(iter(batches)) as read_batches:
            for batch in read_batches:
                yield {name: place(rows) for name, rows in batch.items()}

    return place_all()
