"""`gnp-scale data show`: a picture of some images, as stored and as steps see them, and the sizes of the classes.

B examples, H rows, W columns, C channels, R rows of the picture, K classes.
"""

import io
from pathlib import Path

import jax
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from gnp_scale.config import DataConfig
from gnp_scale.data.augment import augment
from gnp_scale.data.containers.open_folder import open_folder
from gnp_scale.data.containers.record import Contents
from gnp_scale.data.crops import crop_draws
from gnp_scale.data.dataset import Dataset, evenly_spaced
from gnp_scale.data.images import load_images
from gnp_scale.data.manifest import MANIFEST_FILE, Manifest
from gnp_scale.run.files import write_output
from gnp_scale.run.store import run_folder

NUM_IMAGES, NUM_STEPS = 10, 4
_BORDER = 2
"""Pixels between two images."""
_NUM_LISTED = 10
"""Classes in the table: half of them the largest, half the smallest."""


def show(config: DataConfig, path: Path, console: Console) -> None:
    """Writes a picture to `path`, and prints the balance of the classes of each split.

    The first row of the picture has training images, evenly spaced in the data set, as evaluation would see them. Each
    further row has the same examples, cropped and augmented for another step.

    Raises:
        ConfigError: there is no such data set, or the picture cannot be written.
        OSError: the images cannot be read.
    """
    dataset = load_images(config)
    chosen_B = evenly_spaced(len(dataset.train), NUM_IMAGES)
    stored = dataset.train.read(chosen_B, None)["image"]
    rows = [stored, *(_augmented(config, dataset, chosen_B, step) for step in range(NUM_STEPS))]
    picture = io.BytesIO()
    Image.fromarray(_grid(np.stack(rows))).save(picture, format=Image.registered_extensions()[path.suffix.lower()])
    write_output(path, picture.getvalue(), "--out")
    console.print(f"{path}: {len(chosen_B)} training images, and below them the same in {NUM_STEPS} steps")
    folder = f"{config.root}/{config.name}"
    contents = open_folder(folder)
    for name, count_K in _class_counts(folder, contents).items():
        console.print(_balance(name, count_K, contents.class_names))


def _augmented(config: DataConfig, dataset: Dataset, chosen_B: np.ndarray, step: int) -> np.ndarray:
    """Images of a step (uint8 B x H x W x C)."""
    rows = dataset.train.read(chosen_B, crop_draws(0, step, np.arange(len(chosen_B))))
    key_B = jax.random.split(jax.random.fold_in(jax.random.key(0), step), len(chosen_B))
    batch = {name: jax.numpy.asarray(array) for name, array in rows.items()}
    image = augment(batch | {"key": key_B}, config, dataset)["image"]
    return np.clip((np.asarray(image) * dataset.std + dataset.mean) * 255 + 0.5, 0, 255).astype(np.uint8)


def _grid(image_RxBxHxWxC: np.ndarray) -> np.ndarray:
    edges = ((0, 0), (0, 0), (0, _BORDER), (0, _BORDER), (0, 0))
    padded = np.pad(image_RxBxHxWxC, edges, constant_values=255)
    num_rows, num_columns, height, width, channels = padded.shape
    return padded.transpose(0, 2, 1, 3, 4).reshape(num_rows * height, num_columns * width, channels)


def _class_counts(path: str, contents: Contents) -> dict[str, np.ndarray]:
    """The number of examples of each class, for each split; from the manifest if there is one."""
    num_classes = len(contents.class_names)
    folder = run_folder("data.root", path)
    if not (folder / MANIFEST_FILE).exists():
        return {name: np.bincount(source.labels(), minlength=num_classes) for name, source in contents.splits.items()}
    count_of = {}
    for name, shards in Manifest.read(folder).splits.items():
        count_of[name] = np.zeros(num_classes, np.int64)
        for shard in shards:
            for label, count in shard.class_counts.items():
                count_of[name][int(label)] += count
    return count_of


def _balance(split: str, count_K: np.ndarray, class_names: tuple[str, ...]) -> Table:
    """The largest and the smallest classes, with bars."""
    order = np.argsort(-count_K, kind="stable")
    half = _NUM_LISTED // 2
    listed = order if len(order) <= _NUM_LISTED else np.concatenate([order[:half], order[-half:]])
    title = f"{split}: {count_K.sum()} examples, {len(count_K)} classes of {count_K.min()} to {count_K.max()}"
    table = Table("label", "class", "examples", "", title=title, title_justify="left")
    for label in listed.tolist():
        bar = "#" * round(40 * int(count_K[label]) / max(1, int(count_K.max())))
        table.add_row(str(label), class_names[label], str(count_K[label]), bar)
    return table
