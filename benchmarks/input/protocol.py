"""What a loader does in its process: on each line of its input it reads batches. It needs no library but its own."""

import sys
from collections.abc import Iterator
from typing import Any

IMAGE_SIZE, BATCH_SIZE, MIN_AREA = 224, 64, 0.08


def serve(batches: Iterator[Any]) -> None:
    """Reads as many batches as each line of standard input says; prints the number of their bytes."""
    next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        num_bytes = 0
        for _ in range(int(line)):
            image_BxHxWx3 = next(batches)
            assert tuple(image_BxHxWx3.shape) == (BATCH_SIZE, IMAGE_SIZE, IMAGE_SIZE, 3), image_BxHxWx3.shape
            num_bytes += BATCH_SIZE * IMAGE_SIZE * IMAGE_SIZE * 3
        print(num_bytes, flush=True)
