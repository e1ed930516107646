"""Random crops of images of any size, as a function of the seed, the step and the row of the batch.

B examples of the global batch, D draws.
"""

from typing import NamedTuple

import numpy as np

NUM_CROP_TRIES = 10
NUM_DRAWS = 2 * NUM_CROP_TRIES + 2
"""Uniform draws of a random crop: area and aspect ratio for each try, and the place."""
ASPECT_RATIOS = (3 / 4, 4 / 3)
_CROPS = 1
"""In the key of the draws."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def crop_draws(seed: int, step: int, row_B: np.ndarray) -> np.ndarray:
    """Uniform draws (B x D) for the random crops of these rows of the batch of a step: numbers of Philox (Salmon et al.
    2011).

    They are the same for all processes, and no number is drawn for another step, nor for rows far from these.
    """
    runs = np.split(row_B, np.flatnonzero(np.diff(row_B) != 1) + 1)
    return np.concatenate([_draws_of_run(seed, step, int(run[0]), len(run)) for run in runs])


def _draws_of_run(seed: int, step: int, first: int, num: int) -> np.ndarray:
    """The draws of the rows `first`, `first + 1`, ..."""
    # The counter counts blocks of four numbers, so a run begins with an even row.
    even = first - first % 2
    bits = np.random.Philox(key=[seed, _CROPS], counter=[even * NUM_DRAWS // 4, 0, 0, step])
    return np.random.Generator(bits).random((first - even + num, NUM_DRAWS))[first - even :]


def random_box(height: int, width: int, draw_D: np.ndarray, min_area: float) -> Box:
    """A crop with a uniform share of the area in [`min_area`, 1] and a log-uniform aspect ratio in [3/4, 4/3].

    Ten tries, and then the largest centred crop whose ratio is in this range: the rule of torchvision's
    RandomResizedCrop, after Szegedy et al. (arXiv 1409.4842).
    """
    draws = draw_D.tolist()
    low, high = np.log(ASPECT_RATIOS).tolist()
    for attempt in range(NUM_CROP_TRIES):
        area = height * width * (min_area + (1 - min_area) * draws[2 * attempt])
        ratio = np.exp(low + (high - low) * draws[2 * attempt + 1])
        crop_width, crop_height = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top, left = (
                int(draw * (size - crop + 1))
                for draw, size, crop in zip(draws[-2:], (height, width), (crop_height, crop_width), strict=True)
            )
            return Box(top, left, crop_height, crop_width)
    crop_width = min(width, max(1, round(height * ASPECT_RATIOS[1])))
    crop_height = min(height, max(1, round(width / ASPECT_RATIOS[0])))
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)
