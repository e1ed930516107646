"""The attention kernels for TPUs compute what the formula says, and the real compiler compiles them."""

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.tpu_estimates import CHIPS
from gnp_scale import mesh
from gnp_scale.mesh import BATCH, TENSOR, P
from gnp_scale.models import block_attention, tpu_attention
from gnp_scale.monitoring.flops import flops

SIZES = [(3, 13, 2, 64), (2, 20, 8, 32), (1, 17, 3, 128), pytest.param((8, 5, 4, 64), marks=pytest.mark.slow)]
"""Examples, tokens, heads, channels: tokens fill no tile, and a grid step takes several examples and heads."""


def arrays(shape, dtype):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def oracle(query, key, value):
    """The formula in float64."""
    logits = np.einsum("bqhk,bshk->bhqs", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bhqs,bshk->bqhk", weights / weights.sum(-1, keepdims=True), value)


def derivatives(query, key, value, d_out):
    """Of the sum of `oracle * d_out`, written out in float64."""
    factor = query.shape[-1] ** -0.5
    logits = np.einsum("bqhk,bshk->bhqs", query, key) * factor
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    d_weights = np.einsum("bqhk,bshk->bhqs", d_out, value)
    d_logits = weights * (d_weights - np.sum(weights * d_weights, -1, keepdims=True)) * factor
    return (
        np.einsum("bhqs,bshk->bqhk", d_logits, key),
        np.einsum("bhqs,bqhk->bshk", d_logits, query),
        np.einsum("bhqs,bqhk->bshk", weights, d_out),
    )


def relative_error(found, expected):
    return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2e-6), (jnp.bfloat16, 6e-3)])
@pytest.mark.parametrize("shape", SIZES)
def test_results_and_gradients_are_those_of_the_formula(shape, dtype, bound):
    """In bfloat16 the bound is one and a half ulps."""
    check(partial(block_attention.attend, interpret=True), shape, dtype, bound)


@pytest.mark.parametrize(("dtype", "bound"), [(jnp.float32, 2e-6), (jnp.bfloat16, 8e-3)])
@pytest.mark.parametrize("shape", [(1, 512, 2, 80), pytest.param((2, 300, 1, 64), marks=pytest.mark.slow)])
def test_splash_attention_ignores_the_tokens_that_fill_its_blocks(shape, dtype, bound):
    """In bfloat16 it also rounds the scaled query."""
    check(partial(tpu_attention.splash, interpret=True), shape, dtype, bound)


def check(attend, shape, dtype, bound):
    *inputs, d_out = arrays(shape, dtype)
    exact = [np.asarray(x, np.float64) for x in (*inputs, d_out)]
    out, vjp = jax.vjp(attend, *inputs)
    assert relative_error(out, oracle(*exact[:3])) < bound
    for found, expected in zip(vjp(d_out), derivatives(*exact), strict=True):
        assert found.dtype == dtype
        assert relative_error(found, expected) < bound


def test_logits_of_hundreds_do_not_overflow():
    query, key, value, d_out = (100 * x for x in arrays((1, 9, 2, 64), jnp.float32))
    out, vjp = jax.vjp(partial(block_attention.attend, interpret=True), query, key, value)
    assert all(np.isfinite(x).all() for x in (out, *vjp(d_out)))


def test_shards_of_examples_and_heads_compute_the_whole(set_mesh):
    whole = arrays((8, 6, 4, 64), jnp.float32)[:3]
    attend = partial(block_attention.attend, interpret=True)
    expected = jax.jit(attend)(*whole)
    set_mesh(replica=2, fsdp=2, tensor=2)
    spec = P(BATCH, None, TENSOR, None)
    shards = [jax.device_put(x, mesh.sharding(spec)) for x in whole]
    found = jax.jit(attend)(*shards)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("size", "dtype", "reason"),
    [
        ((197, 12, 64), "bfloat16", None),
        ((809, 12, 64), "bfloat16", None),
        ((810, 12, 64), "bfloat16", "at most 809 tokens, and these are 810"),
        ((686, 12, 64), "float32", None),
        ((687, 12, 64), "float32", "at most 686 tokens, and these are 687"),
        ((324, 4, 256), "float32", "at most 323 tokens"),
        ((1, 2, 512), "float32", "at most 0 tokens"),
        ((197, 12, 80), "bfloat16", "channels divide 128 or are a multiple of it, and these have 80"),
        ((1023, 3, 64), "bfloat16", "a multiple of 128 channels in all heads of a device, and these are 192"),
        ((1024, 3, 64), "bfloat16", None),
        ((1025, 12, 80), "float32", None),
    ],
)
def test_sizes_that_do_not_fit_are_refused(size, dtype, reason, monkeypatch):
    monkeypatch.setattr(block_attention.pltpu, "get_tpu_info", lambda: TpuV4())
    found = tpu_attention.choose(*size, dtype)
    assert callable(found) if reason is None else reason in found


@pytest.mark.parametrize(
    ("num_channels", "dtype", "blocks"),
    [(80, "bfloat16", (1024, 512)), (80, "float32", (512,)), (128, "bfloat16", (1024, 512)), (256, "bfloat16", (512,))],
)
def test_blocks_of_splash_attention_fit_a_small_chip(num_channels, dtype, blocks, monkeypatch):
    """The compiler of the v4 refused the larger ones for the types and channels that have the smaller ones here."""
    monkeypatch.setattr(block_attention.pltpu, "get_tpu_info", lambda: TpuV4())
    monkeypatch.setattr(tpu_attention, "splash", lambda *arrays, blocks: found.append(blocks) or arrays[0])
    found = []
    query = jnp.zeros((1, 8, 1, num_channels), dtype)
    tpu_attention.splash_on_shards(query, query, query)
    assert set(found) == {blocks}


class TpuV4:
    vmem_capacity_bytes = 16 * 2**20


@pytest.mark.parametrize("size", [(16, 2, 64), (1100, 2, 80)])
def test_the_products_of_the_formula_count_as_flops(size, monkeypatch):
    """By each kernel, and neither the zeros of other heads nor the tokens that fill a block."""
    monkeypatch.setattr(block_attention.pltpu, "get_tpu_info", lambda: TpuV4())
    query = jax.ShapeDtypeStruct((4, *size), jnp.bfloat16)
    num_tokens, num_heads, num_channels = size
    expected = 2 * 2 * 4 * num_heads * num_tokens**2 * num_channels
    assert flops(lambda x: tpu_attention.choose(*size, x.dtype)(x, x, x), query) == expected


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: make tpu-compiler")
# The v4 has the least memory for kernels.
@pytest.mark.parametrize("chip", ["v4", pytest.param("v5e", marks=pytest.mark.long)])
def test_a_step_for_tpus_calls_the_kernels(chip):
    """In float32, which takes more memory of the chip, the chip's compiler compiles them."""
    settings = CHIPS[chip].environment() | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    script = Path(__file__).with_name("attention_on_tpu.py")
    command = [sys.executable, str(script), chip]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Forward and backward, which the passes of a penalised step share as functions before it is compiled.
    assert json.loads(done.stdout.splitlines()[-1]) == {"bfloat16": 2, "float32": 2, "compiled": 2}
