"""Which implementation computes attention: the one named, or a refusal in one line."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from gnp_scale.config import ConfigError
from gnp_scale.models import attention

SCRIPT = Path(__file__).parent / "attention_on_h100.py"


def heads(num_channels=64, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct((2, 16, 3, num_channels), dtype)


@pytest.mark.parametrize(
    ("platform", "query", "reason"),
    [
        ("cpu", heads(), "needs a GPU, and this is cpu"),
        ("tpu", heads(), "needs a GPU, and this is tpu"),
        ("gpu", heads(dtype=jnp.float32), "needs model.dtype bfloat16, and this is float32"),
        ("gpu", heads(100), "a multiple of 8, and these have 100"),
        ("gpu", heads(136), "at most 128 channels, a multiple of 8, and these have 136"),
    ],
)
def test_cudnn_is_refused_by_name_where_it_does_not_fit(platform, query, reason, monkeypatch):
    monkeypatch.setattr(attention, "platform", lambda: platform)
    with pytest.raises(ConfigError, match=rf'model.attention "cudnn" .*{reason}.* use auto or xla'):
        jax.eval_shape(lambda x: attention.attend(x, x, x, "cudnn"), query)
    out = jax.eval_shape(lambda x: attention.attend(x, x, x, "auto"), query)
    assert (out.shape, out.dtype) == (query.shape, query.dtype)


@pytest.mark.slow
@pytest.mark.skipif(
    not (importlib.util.find_spec("jax_cuda13_plugin") and importlib.util.find_spec("nvidia.cudnn")),
    reason="XLA's compiler for GPUs and cuDNN are not installed: make gpu-compiler",
)
def test_a_bfloat16_step_for_gpus_calls_cudnn_and_counts_its_flops():
    env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false"}
    done = subprocess.run([sys.executable, SCRIPT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # Forward and backward, in each of two passes.
    assert found["bfloat16"] == 4
    assert found["float32"] == 0
    assert found["flops of cudnn"] == found["flops of xla"]
