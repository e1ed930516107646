"""What the device can do at best."""

import json
import statistics
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from gnp_kernels.timing import interleave

from benchmarks.gpu.sizes import NUM_ROUNDS, TINY

FILE = "ceilings.json"


def main(folder: Path) -> None:
    """Prints bytes/s of a copy, read and written, and bfloat16 FLOP/s of a large matrix product, and keeps them."""
    num_floats, width, num_loops = (1 << 16, 256, 2) if TINY else (1 << 28, 8192, 20)
    x = jnp.ones(num_floats)
    a, b = (jax.random.normal(jax.random.key(seed), (width, width), jnp.bfloat16) for seed in range(2))
    b = b / width**0.5
    copy = jax.jit(lambda x: jax.lax.fori_loop(0, num_loops, lambda _, x: -x, x))
    multiply = jax.jit(lambda a, b: jax.lax.fori_loop(0, num_loops, lambda _, a: a @ b, a))
    seconds = interleave({"copy": partial(copy, x), "multiply": partial(multiply, a, b)}, NUM_ROUNDS)
    copy_s, multiply_s = (statistics.median(seconds[name]) / num_loops for name in ("copy", "multiply"))
    found = {"bytes_per_s": 8 * num_floats / copy_s, "flops_per_s": 2 * width**3 / multiply_s}
    (folder / FILE).write_text(json.dumps(found))
    print(jax.devices()[0].device_kind)
    print(f"copy {found['bytes_per_s'] / 1e9:.0f} GB/s, bfloat16 product {found['flops_per_s'] / 1e12:.2f} TFLOP/s")


def ceiling(folder: Path, name: str) -> float:
    """What `main` measured: "bytes_per_s" or "flops_per_s"."""
    return json.loads((folder / FILE).read_text())[name]
