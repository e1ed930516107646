"""Compiles steps of a shallow ViT-B for 8 H100 and prints their kernel launches, as JSON."""

import json
import sys

from benchmarks.hardware import compiled_step, h100_mesh
from benchmarks.kernels_gpu import VARIANTS
from benchmarks.launches import count

NUM_BLOCKS = 2


def main() -> None:
    """The named variants."""
    mesh = h100_mesh()
    counts = {
        name: count(compiled_step(mesh, "ViT-B/16", *VARIANTS[name], depth=NUM_BLOCKS))._asdict()
        for name in sys.argv[1:]
    }
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
