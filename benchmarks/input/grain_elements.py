"""Grain with one element for each image, and this project's decoder. Command: grain_elements.py FOLDER NUM_THREADS."""

import sys
from collections.abc import Iterator
from pathlib import Path

import grain
import numpy as np

from benchmarks.input.protocol import BATCH_SIZE, IMAGE_SIZE, MIN_AREA, serve
from gnp_scale.data import decode
from gnp_scale.data.crops import NUM_DRAWS


def batches(folder: Path, num_threads: int) -> Iterator[np.ndarray]:
    """Batches of uint8 images, cropped at random, half of them mirrored."""

    def read(path: Path, random: np.random.Generator) -> np.ndarray:
        image_HxWx3 = np.empty((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        decode.random_crop(path.read_bytes(), random.random(NUM_DRAWS), MIN_AREA, image_HxWx3)
        return image_HxWx3[:, ::-1] if random.random() < 0.5 else image_HxWx3

    paths = sorted(folder.rglob("*.JPEG"))
    images = grain.MapDataset.source(paths).seed(0).shuffle().repeat().random_map(read)
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * BATCH_SIZE)
    return iter(images.to_iter_dataset(options).batch(BATCH_SIZE))


if __name__ == "__main__":
    serve(batches(Path(sys.argv[1]), int(sys.argv[2])))
