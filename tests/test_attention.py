"""Which implementation computes attention: the one named, or a refusal in one line."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from gnp_scale.config import ConfigError
from gnp_scale.models import attention, cait

SCRIPT = Path(__file__).parent / "attention_on_h100.py"


def heads(num_channels=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((2, 16, 3, num_channels), dtype)


@pytest.mark.parametrize(
    ("kind", "query", "reason"),
    [
        ("cpu", heads(), "needs an NVIDIA GPU, and this is cpu"),
        ("TPU v5e", heads(), "needs an NVIDIA GPU, and this is TPU v5e"),
        ("AMD Instinct MI300X", heads(), "needs an NVIDIA GPU, and this is AMD"),
        ("NVIDIA H100 80GB HBM3", heads(dtype=jnp.float32), "needs model.dtype bfloat16, and this is float32"),
        ("NVIDIA H100 80GB HBM3", heads(100), "a multiple of 8, and these have 100"),
        ("NVIDIA H100 80GB HBM3", heads(136), "at most 128 channels, a multiple of 8, and these have 136"),
    ],
)
def test_cudnn_is_refused_by_name_where_it_does_not_fit(kind, query, reason, monkeypatch):
    monkeypatch.setattr(attention, "device_kind", lambda: kind)
    check_refused(query, reason)


def test_cudnn_is_refused_on_an_old_gpu(monkeypatch):
    gpu = SimpleNamespace(device_kind="NVIDIA GeForce RTX 2080 Ti", compute_capability="7.5")
    monkeypatch.setattr(attention, "device_kind", lambda: gpu.device_kind)
    monkeypatch.setattr(jax, "devices", lambda: [gpu])
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_refused(heads(), "needs compute capability 8.0, and NVIDIA GeForce RTX 2080 Ti has 7.5")


@pytest.mark.parametrize("flag", ["--xla_gpu_deterministic_ops", "--xla_gpu_exclude_nondeterministic_ops=true"])
def test_cudnn_is_refused_with_deterministic_operations(flag, monkeypatch):
    """Otherwise XLA compiles a network with two equal layers, and its first step fails."""
    monkeypatch.setattr(attention, "device_kind", lambda: "NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x {flag}")
    check_refused(heads(), "needs XLA_FLAGS without --xla_gpu_deterministic_ops or --xla_gpu_exclude_nondeterm")


@pytest.mark.parametrize(
    ("kind", "query", "reason"),
    [
        ("cpu", heads(), "needs a TPU, and this is cpu"),
        ("NVIDIA H100 80GB HBM3", heads(dtype=jnp.float32), "needs a TPU, and this is NVIDIA H100"),
        ("TPU v5e", heads(), "a multiple of 128 channels in all heads of a device, and these are 192"),
    ],
)
def test_pallas_is_refused_by_name_where_it_does_not_fit(kind, query, reason, monkeypatch):
    monkeypatch.setattr(attention, "device_kind", lambda: kind)
    check_refused(query, reason, "pallas")


def test_xla_by_name_asks_no_device(monkeypatch):
    """A run that names it imports no Pallas on a TPU."""

    def device_kind():
        raise AssertionError("the kind of device does not matter")

    monkeypatch.setattr(attention, "device_kind", device_kind)
    out = jax.eval_shape(lambda x: attention.attend(x, x, x, "xla"), heads())
    assert (out.shape, out.dtype) == (heads().shape, heads().dtype)


def check_refused(query, reason, name="cudnn"):
    """By name it is an error; "auto" uses another implementation."""
    with pytest.raises(ConfigError, match=rf'model.attention "{name}" .*{reason}.* use auto or xla'):
        jax.eval_shape(lambda x: attention.attend(x, x, x, name), query)
    out = jax.eval_shape(lambda x: attention.attend(x, x, x, "auto"), query)
    assert (out.shape, out.dtype) == (query.shape, query.dtype)


@pytest.mark.long
@pytest.mark.skipif(
    not (importlib.util.find_spec("jax_cuda13_plugin") and importlib.util.find_spec("nvidia.cudnn")),
    reason="XLA's compiler for GPUs and cuDNN are not installed: make gpu-compiler",
)
def test_a_bfloat16_step_for_gpus_calls_cudnn_counts_its_flops_and_transposes_nothing():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Forward and backward, in each of two passes.
    assert found["bfloat16"] == found["compiled"] == 4
    assert found["float32"] == 0
    # Without `with_row_major_gradient` there are hundreds.
    assert found["transposed"] == 0
    assert found["flops of cudnn"] == found["flops of xla"]


def test_heads_are_mixed_as_by_a_matrix_product_in_float32():
    """And have its gradients, which the layer computes itself. Talking heads mix the rounded products of bfloat16."""
    rng = np.random.default_rng(0)
    graph, params = nnx.split(cait.HeadMixing(jax.random.key(0), num_heads=3))
    kernel, heads, d_mixed = (rng.normal(size=shape).astype("f") for shape in ((3, 3), (3, 2, 5, 4), (3, 2, 5, 4)))

    def mixed(kernel, heads):
        mixing = nnx.merge(graph, nnx.to_pure_dict(params) | {"kernel": kernel})
        return jnp.stack(mixing(tuple(heads), scale=0.5, with_bias=False))

    rounded = jnp.asarray(heads, jnp.bfloat16)
    found, backward = jax.vjp(mixed, jnp.asarray(kernel), rounded)
    # With `train.gather` "pass" the kernel has the type of the heads too.
    assert mixed(jnp.asarray(kernel, jnp.bfloat16), rounded).dtype == found.dtype == jnp.float32
    exact = np.asarray(rounded, np.float64)
    np.testing.assert_allclose(found, 0.5 * np.einsum("hg,hbqs->gbqs", kernel, exact), atol=1e-6)
    d_kernel, d_heads = backward(jnp.asarray(d_mixed))
    np.testing.assert_allclose(d_kernel, 0.5 * np.einsum("hbqs,gbqs->hg", exact, d_mixed), atol=1e-5)
    assert d_heads.dtype == jnp.bfloat16
    expected = 0.5 * np.einsum("hg,gbqs->hbqs", kernel, d_mixed)
    np.testing.assert_allclose(np.asarray(d_heads, np.float32), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.slow
def test_many_heads_are_mixed_together_to_the_same_result(monkeypatch):
    """In float32, with the gradients of all parameters: which way is faster depends on the number of heads alone."""
    layer = cait.TalkingHeads(jax.random.key(0), cait.ViTConfig(32, 1, 64, cait.MANY_HEADS, deit=True))
    graph, params = nnx.split(layer)
    parts = jax.random.normal(jax.random.key(1), (3, 2, 5, cait.MANY_HEADS, 4))

    def gradients():
        def loss(params, parts):
            return jnp.sum(jnp.tanh(nnx.merge(graph, params).attend(*parts)))

        return jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(params, parts))

    together = gradients()
    monkeypatch.setattr(cait, "MANY_HEADS", cait.MANY_HEADS + 1)
    for one, other in zip(together, gradients(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
