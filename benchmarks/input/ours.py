"""The project's loader, with the flip that a run leaves to the device. Command: ours.py FOLDER NUM_THREADS."""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import numpy as np

from benchmarks.input.protocol import BATCH_SIZE, IMAGE_SIZE, MIN_AREA, serve
from gnp_scale.config import DataConfig, MeshConfig
from gnp_scale.data.pipeline import train_rows
from gnp_scale.data.sources import load
from gnp_scale.mesh import make_mesh


def batches(folder: Path, num_threads: int) -> Iterator[np.ndarray]:
    """Batches of uint8 images, cropped at random, half of them mirrored."""
    config = DataConfig(
        name=folder.name,
        root=str(folder.parent),
        batch_size=BATCH_SIZE,
        image_size=IMAGE_SIZE,
        crop_area=MIN_AREA,
        eval_split="train",
        num_threads=num_threads,
    )
    flips = np.random.default_rng(0)
    with jax.set_mesh(make_mesh(MeshConfig())):
        for rows in train_rows(load(config), config, 0, 0, 1 << 30):
            for row in np.flatnonzero(flips.random(BATCH_SIZE) < 0.5):
                cv2.flip(rows["image"][row], 1, rows["image"][row])
            yield rows["image"]


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    serve(batches(Path(sys.argv[1]), int(sys.argv[2])))
