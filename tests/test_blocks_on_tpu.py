"""What the TPU compiler makes of the blocks of small scanned vision transformers: their collectives, and their memory.

Closed forms: a block has 12 D^2 entries in its kernels, and an activation of the width has N D for each example.
"""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from blocks_on_tpu import CASES, DEPTH, FEW, NUM_TOKENS, WIDTH

from benchmarks.tpu_estimates import CHIPS
from gnp_scale.mesh import FSDP, REPLICA, TENSOR

pytestmark = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs make tpu-compiler")

NUM_BYTES = 2  # of a bfloat16
KERNELS = 12 * WIDTH**2 * NUM_BYTES
"""Bytes of those of a block."""
VECTORS = 4 * (4 + 9) * WIDTH
"""Bytes, in float32, of the biases and norms of a block: 3 + 1 + 4 + 1 biases and 4 vectors of norms."""


class Program(NamedTuple):
    """What was found in a compiled program."""

    collectives: list[tuple[str, tuple[str, ...], int, float]]
    device_bytes: int
    host_bytes: int

    def sent(self, kind: str, *axes: str, in_loop: bool = True) -> list[int]:
        """Bytes that a chip sends in each collective over `axes`, for one block, or outside of the blocks."""
        return [
            num_bytes
            for name, along, num_bytes, runs in self.collectives
            if (name, along) == (kind, axes) and (runs == DEPTH) == in_loop
        ]


def compile_cases(folder: Path, names: Sequence[str]) -> dict[str, Program]:
    script = Path(__file__).with_name("blocks_on_tpu.py")
    env = os.environ | CHIPS["v5e"].environment()
    done = subprocess.run(
        [sys.executable, str(script), str(folder), *names], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    return {
        name: Program([(kind, tuple(axes), *rest) for kind, axes, *rest in each.pop("collectives")], **each)
        for name, each in found.items()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The program of a case; with it, those of its group are compiled."""
    compiled = functools.cache(lambda group: compile_cases(tmp_path_factory.mktemp("small"), group))
    return lambda name: compiled(GROUPS[name])[name]


GROUPS = {name: group for group in (("fsdp", "tensor", "tokens"), ("replica", "offload")) for name in group}
SMALL = ["fsdp", "tensor", "tokens", pytest.param("replica", marks=pytest.mark.long)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_block_gathers_its_own_kernels_twice_over_fsdp_and_no_activation(name, small):
    """For the forward and for the backward pass."""
    mesh = CASES[name].mesh
    expected = 2 * KERNELS / mesh.tensor * (mesh.fsdp - 1) / mesh.fsdp
    assert sum(small(name).sent("all-gather", FSDP)) == expected
    others = {axes for kind, axes, _, runs in small(name).collectives if kind == "all-gather" and runs == DEPTH}
    assert others <= {(FSDP,), (TENSOR,)}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_no_kernel_of_a_block_is_gathered_outside_of_the_loop(name, small):
    """Only the embedding, the positions and the head are, together less than one of the kernels of all blocks."""
    outside = small(name).sent("all-gather", FSDP, in_loop=False)
    outside += small(name).sent("all-gather", FSDP, TENSOR, in_loop=False)
    assert outside
    assert max(outside) < DEPTH * WIDTH**2 * NUM_BYTES / 2


@pytest.mark.slow
def test_gradients_of_kernels_are_scattered_over_fsdp(small):
    """The compiler all-reduces one of the four kernels instead: an all-reduce sends twice as much."""
    scattered, reduced = (sum(small("fsdp").sent(kind, FSDP)) for kind in ("reduce-scatter", "all-reduce"))
    assert scattered + reduced / 2 == pytest.approx(KERNELS * 3 / 4, rel=0.1)
    assert scattered >= 0.9 * KERNELS * 3 / 4


@pytest.mark.long
def test_only_shards_of_gradients_cross_replicas(small):
    assert sum(small("replica").sent("all-reduce", REPLICA)) == KERNELS / 2
    assert sum(small("replica").sent("all-reduce", REPLICA, FSDP)) <= 2 * 3 / 4 * VECTORS
    assert small("replica").sent("reduce-scatter", FSDP)


@pytest.mark.slow
def test_tensor_parallel_blocks_all_reduce_activations_and_those_with_shards_of_tokens_do_not(small):
    """Twice in each pass; or 2 gathers in the forward pass, 4 in the backward pass, and twice 2 reduce-scatters."""
    activation = FEW // 2 * NUM_TOKENS * WIDTH * NUM_BYTES
    assert small("tensor").sent("all-reduce", TENSOR) == [activation] * 4
    assert small("tensor").sent("all-gather", TENSOR) == []
    assert small("tokens").sent("all-reduce", TENSOR) == []
    assert small("tokens").sent("all-gather", TENSOR) == [activation // 2] * 6
    assert small("tokens").sent("reduce-scatter", TENSOR) == [activation // 2] * 4


@pytest.mark.long
def test_offloaded_inputs_of_blocks_are_in_the_memory_of_the_host(small):
    activation = FEW // 4 * NUM_TOKENS * WIDTH * NUM_BYTES
    assert small("offload").host_bytes == DEPTH * activation
    assert small("fsdp").host_bytes == 0


@pytest.mark.long
def test_each_kind_of_recomputation_takes_less_memory_than_the_one_before(tmp_path):
    none, dots, block = (each.device_bytes for each in compile_cases(tmp_path, ["none", "dots", "block"]).values())
    assert none > dots > block
