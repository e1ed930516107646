"""The stream of batches: the batch of step t depends only on the seed and t, on any number of processes.

A stream is endless; batch t has the positions t * B to (t + 1) * B. Each process reads the positions whose rows its own
devices hold, some batches ahead, in threads.

B examples of the global batch.
"""

import contextlib
from collections.abc import Callable, Generator, Iterable, Sequence

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from gnp_scale.config import DataConfig, check
from gnp_scale.data.augment.repeats import repeated
from gnp_scale.data.crops import crop_draws
from gnp_scale.data.dataset import UNREADABLE, Dataset, Examples, Rows
from gnp_scale.data.shuffle import examples_at
from gnp_scale.mesh import BATCH, batch_spec, current_axis_size, sharding

_NUM_READERS = 2
"""Batches that are read at the same time, so that a batch begins while the last images of another are decoded."""

type Batch = dict[str, jax.Array]
type Batches = Generator[Batch, None, None]
type Bounds = tuple[int, int]


def train_batches(dataset: Dataset, config: DataConfig, seed: int, start_step: int, num_steps: int) -> Batches:
    """The `num_steps` batches of the steps `start_step`, `start_step + 1`, ... on the current mesh.

    Each is `image` (uint8 B x H x W x C) and `label` (int32 B), sharded over the mesh axes of the examples. Closing the
    iterator ends its threads once they have made the batches that they are at.

    Raises:
        ConfigError: the devices cannot share the batch equally.
    """
    check_divisible(config)
    placement = _Placement(config.batch_size)
    read = _train_reader(dataset.train, config, seed, placement.row)
    steps = range(start_step, start_step + num_steps)
    return _ahead(lambda step: placement.place(read(step)), steps, config.prefetch_steps)


def train_rows(dataset: Dataset, config: DataConfig, seed: int, start_step: int, num_steps: int) -> Generator[Rows]:
    """As `train_batches`, but arrays on the host, with the rows of this process."""
    check_divisible(config)
    read = _train_reader(dataset.train, config, seed, _Placement(config.batch_size).row)
    return _ahead(read, range(start_step, start_step + num_steps), config.prefetch_steps)


def eval_batches(split: Examples, config: DataConfig) -> Batches:
    """All examples of `split` once, in order, in equally many batches on every process, on the current mesh.

    Each batch is `image`, `label` and `mask` (float32 B), which is 0 for the padding of the last batch and for images
    that cannot be used.

    Raises:
        ConfigError: the devices cannot share the batch equally.
    """
    check_divisible(config, ("eval_batch_size",))
    placement = _Placement(config.eval_batch_size)
    num_examples = len(split)

    def read(step: int) -> Rows:
        position = step * config.eval_batch_size + placement.row
        rows = split.read(np.minimum(position, num_examples - 1), None)
        counts = (position < num_examples) & (rows["label"] != UNREADABLE)
        return rows | {"label": np.maximum(rows["label"], 0), "mask": counts.astype(np.float32)}

    steps = range(num_eval_batches(split, config))
    return _ahead(lambda step: placement.place(read(step)), steps, config.prefetch_steps)


def num_eval_batches(split: Examples, config: DataConfig) -> int:
    """How many batches `eval_batches` has."""
    return -(-len(split) // config.eval_batch_size)


def batch_indices(seed: int, num_examples: int, batch_size: int, step: int) -> np.ndarray:
    """Examples (int64 B) of the batch of `step`; a batch may end one epoch and begin the next."""
    return examples_at(seed, num_examples, step * batch_size + np.arange(batch_size))


def check_divisible(config: DataConfig, names: Sequence[str] = ("batch_size", "eval_batch_size")) -> None:
    """Checks that batch sizes can be split equally over the devices of the current mesh.

    Raises:
        ConfigError: a batch size is not divisible.
    """
    num_shards = current_axis_size(BATCH)
    for name in names:
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


def _train_reader(split: Examples, config: DataConfig, seed: int, row: np.ndarray) -> Callable[[int], Rows]:
    """Reads the rows `row` of the batch of a step."""

    def read(step: int) -> Rows:
        position = repeated(step * config.batch_size + row, config.batch_size, config.num_repeats)
        chosen = examples_at(seed, len(split), position)
        return split.read(chosen, crop_draws(seed, step, row))

    return read


class _Placement:
    """Where the rows of a global batch lie on the current mesh."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size, self._mesh = batch_size, jax.sharding.get_mesh()
        bounds = row_bounds(sharding(batch_spec()), batch_size, self._mesh.local_devices)
        # Devices along the tensor axis hold the same rows, which are read once.
        self.row = np.concatenate([np.arange(*bound) for bound in sorted(set(bounds.values()))])
        """The rows of this process."""

    def place(self, rows: Rows) -> Batch:
        """Starts to copy the rows of this process to its devices."""
        shapes = {name: (self._batch_size, *array.shape[1:]) for name, array in rows.items()}
        shardings = {name: NamedSharding(self._mesh, batch_spec(len(shape))) for name, shape in shapes.items()}
        with jax.transfer_guard_host_to_device("allow"):
            return jax.make_array_from_process_local_data(shardings, rows, shapes)


def _ahead[T](make: Callable[[int], T], steps: range, num_ahead: int) -> Generator[T]:
    """`make(step)` for all `steps`, in order; threads make `num_ahead` of them before they are asked for."""
    if not steps:
        return
    options = grain.ReadOptions(min(_NUM_READERS, num_ahead), num_ahead)
    later = grain.MapDataset.range(steps.start + 1, steps.stop).map(make).to_iter_dataset(options)
    with contextlib.closing(iter(later)) as iterator:
        # Alone: with others beside it, it would take twice the time.
        first = [make(steps[0])]
        iterator.start_prefetch()
        yield first.pop()
        yield from iterator
