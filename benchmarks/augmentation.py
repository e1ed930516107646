"""Where to augment: crop, flip and normalise inside the compiled step, or on the host in NumPy?

Command: python -m benchmarks.augmentation [--rounds N]
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from gnp_kernels.timing import interleave, ratio

from benchmarks.timing import write_report
from gnp_scale.config import DataConfig
from gnp_scale.data.augment import augment
from gnp_scale.data.dataset import Dataset
from gnp_scale.data.sources import load

BATCH_SIZES = (128, 256)
PADDING = 4


def main() -> None:
    """Times both ways and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=300)
    num_rounds = parser.parse_args().rounds
    dataset = load(DataConfig(name="synthetic"))
    lines = [
        "Command: `python -m benchmarks.augmentation`.",
        "",
        f"Medians over {num_rounds} rounds, which alternate between the two in one process; the ratio is that within",
        "a round, with quartiles. 32 x 32 x 3 images on one device, reflect-pad 4, random crop, flip, normalise.",
        "Each time runs from a uint8 batch on the host to a float32 batch on the device, with the draws. NumPy works",
        "on whole batches and draws them from one generator, where the step draws each example from its own key.",
        "",
        "| batch | in the step, ms | on the host, ms | host / step |",
        "|---|---|---|---|",
        *(row(dataset, batch_size, num_rounds) for batch_size in BATCH_SIZES),
        "",
        "In the step, a quarter as many bytes pass to the device, and the host keeps its cores for reading.",
    ]
    write_report("augmentation", "Augmentation in the step and on the host", lines)


def row(dataset: Dataset, batch_size: int, num_rounds: int) -> str:
    """The line of the table for `batch_size`."""
    image_BxHxWxC = dataset.train.read(np.arange(batch_size), None)["image"]
    seconds = interleave({"step": in_jit(image_BxHxWxC, dataset), "host": on_host(image_BxHxWxC, dataset)}, num_rounds)
    step_ms, host_ms = (statistics.median(seconds[name]) * 1e3 for name in ("step", "host"))
    return f"| {batch_size} | {step_ms:.2f} | {host_ms:.2f} | {ratio(seconds, 'host', 'step')} |"


def in_jit(image_BxHxWxC: np.ndarray, dataset: Dataset) -> Callable[[], jax.Array]:
    """Moves the uint8 images, then augments them on the device."""
    config = DataConfig(crop_padding=PADDING, flip=True)
    keys = jax.random.split(jax.random.key(0), len(image_BxHxWxC))
    label_B = jax.device_put(dataset.train.read(np.arange(len(image_BxHxWxC)), None)["label"])
    compiled = jax.jit(partial(augment, config=config, dataset=dataset))
    return lambda: compiled({"image": jax.device_put(image_BxHxWxC), "label": label_B, "key": keys})["image"]


def on_host(image_BxHxWxC: np.ndarray, dataset: Dataset) -> Callable[[], jax.Array]:
    """Augments the images in NumPy, whole batches at once, then moves the float32 result."""
    random = np.random.default_rng(0)
    batch_size, height, width, _ = image_BxHxWxC.shape
    mean_C, std_C = (np.array(statistic, np.float32) for statistic in (dataset.mean, dataset.std))
    margin = (PADDING, PADDING)

    def run() -> jax.Array:
        padded = np.pad(image_BxHxWxC, ((0, 0), margin, margin, (0, 0)), mode="reflect")
        first_row_B, first_column_B = random.integers(0, 2 * PADDING + 1, (2, batch_size))
        row_BxH = first_row_B[:, None] + np.arange(height)
        column_BxW = first_column_B[:, None] + np.arange(width)
        flipped_B = random.random(batch_size) < 0.5
        column_BxW = np.where(flipped_B[:, None], column_BxW[:, ::-1], column_BxW)
        cropped = padded[np.arange(batch_size)[:, None, None], row_BxH[:, :, None], column_BxW[:, None, :]]
        return jax.device_put((cropped.astype(np.float32) / 255 - mean_C) / std_C)

    return run


if __name__ == "__main__":
    main()
