"""PyTorch's DataLoader with Pillow, by the definitions of torchvision. Command: torch_loader.py FOLDER NUM_WORKERS.

It needs PyTorch, NumPy and Pillow, in an environment of its own.
"""

import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from PIL import Image
from protocol import BATCH_SIZE, IMAGE_SIZE, MIN_AREA, serve


class Images(torch.utils.data.Dataset):
    """RandomResizedCrop and RandomHorizontalFlip of images that Pillow opens."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.JPEG"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> torch.Tensor:
        with Image.open(self.paths[number]) as file:
            image = file.convert("RGB")
        image = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=box(*image.size))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image))


def box(width: int, height: int) -> tuple[int, int, int, int]:
    """Corners of a random crop."""
    for _ in range(10):
        area = width * height * random.uniform(MIN_AREA, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def batches(folder: Path, num_workers: int) -> Iterator[torch.Tensor]:
    """Batches of uint8 images, without end."""
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Images(folder), BATCH_SIZE, shuffle=True, drop_last=True, num_workers=num_workers, persistent_workers=True
    )
    while True:
        yield from loader


if __name__ == "__main__":
    serve(batches(Path(sys.argv[1]), int(sys.argv[2])))
