"""Estimates of attention on absent TPUs, for each way to compute it: `python -m benchmarks.attention_tpu [CHIP ...]`.

Forward and backward pass of one layer in each type, for 16,384 tokens in all. All numbers come from the TPU compiler
(`make tpu-compiler`) and `benchmarks.tpu_estimates`; none was measured.
"""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.launches import memory_bytes
from benchmarks.tpu_estimates import Chip, Xla, print_table, schedules
from gnp_scale import mesh
from gnp_scale.config import MeshConfig
from gnp_scale.mesh import BATCH, TENSOR, P, make_mesh
from gnp_scale.models import attention, block_attention, tpu_attention

NUM_TOKENS = 16384
SIZES = [(196, 12, 64), (576, 12, 64), (1024, 12, 64), (2048, 12, 64), (4096, 12, 64), (256, 16, 80), (1024, 16, 80)]
"""Tokens of an example, heads, and channels of a head."""
WAYS: dict[str, Callable[..., Any]] = {
    "XLA": attention.by_xla,
    "block": block_attention.attend,
    "splash": tpu_attention.splash_on_shards,
}


DTYPES = jnp.bfloat16, jnp.float32

HEADER = """\
| chip | type | tokens | heads | channels | way | cycles of XLA | bundles of kernels | sum / XLA | bytes | temporary |
|---|---|---|---|---|---|---|---|---|---|---|"""


def rows(chip: Chip, dump: Path) -> Iterator[list[str]]:
    """The cells for each size and way that compiles."""
    with jax.set_mesh(make_mesh(MeshConfig(), chip.devices()[:1])):
        for dtype, size in itertools.product(DTYPES, SIZES):
            alone = None
            for way, attend in WAYS.items():
                if way == "block" and block_attention.refusal(*size, dtype) is not None:
                    continue
                program = compiled(attend, dtype, *size)
                text, temporary_bytes = program.as_text(), program.memory_analysis().temp_size_in_bytes
                num_bundles = sum(schedule.whole.cycles for schedule in schedules(dump, way.lower()))
                cycles = Xla.of(text).cycles
                alone = alone or cycles
                cells = [f"{cycles / 1e6:.2f} M", f"{num_bundles / 1e6:.2f} M", f"{(cycles + num_bundles) / alone:.2f}"]
                cells += [f"{memory_bytes(text) / 1e9:.2f} GB", f"{temporary_bytes / 1e9:.2f} GB"]
                yield [dtype.dtype.name, *map(str, size), way, *cells]
                for file in dump.iterdir():
                    file.unlink()


def compiled(
    attend: Callable[..., Any], dtype: jax.typing.DTypeLike, num_tokens: int, num_heads: int, num_channels: int
) -> Any:
    """The program of both passes."""
    shape = (max(1, NUM_TOKENS // num_tokens), num_tokens, num_heads, num_channels)
    spec = P(BATCH, None, TENSOR, None)
    x = jax.ShapeDtypeStruct(shape, dtype, sharding=mesh.sharding(spec))

    def passes(query: jax.Array, key: jax.Array, value: jax.Array, d_out: jax.Array) -> Any:
        out, vjp = jax.vjp(attend, query, key, value)
        return out, vjp(d_out)

    return jax.jit(passes).trace(x, x, x, x).lower(lowering_platforms=("tpu",)).compile()


if __name__ == "__main__":
    print_table("benchmarks.attention_tpu", __doc__, HEADER, ["v5e", "v5p"], rows)
