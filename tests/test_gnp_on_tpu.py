"""On TPU v5p w + eps is computed once."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from mlp import BATCH_OF_16, PARAMS, assert_trees_equal, mlp_loss, on_device

from benchmarks.tpu_estimates import CHIPS
from gnp_scale.gnp import Gnp, passes, penalize
from gnp_scale.mesh import FSDP, P, sharding

TESTS = Path(__file__).parent


SPECS = {"hidden_kernel_DxH": P(FSDP), "hidden_bias_H": P(), "head_kernel_HxK": P(None, FSDP), "head_bias_K": P()}


def on_mesh():
    """Parameters that a network would shard over `fsdp`, and a batch."""
    params = {name: jax.device_put(w, sharding(SPECS[name])) for name, w in on_device(PARAMS, np.float32).items()}
    return params, jax.device_put(on_device(BATCH_OF_16, np.float32), sharding(P()))


@pytest.mark.parametrize("replica", [1, 2])
def test_to_store_the_perturbed_parameters_changes_no_number(replica, monkeypatch, set_mesh):
    set_mesh(replica=replica, fsdp=1)
    arguments = on_mesh()
    found, is_stored = {}, {}
    for name in ("cpu", "TPU v5"):
        monkeypatch.setattr(passes, "device_kind", lambda name=name: name)
        traced = jax.jit(penalize(mlp_loss, Gnp(r=0.1, alpha=0.8))).trace(*arguments)
        is_stored[name] = "optimization_barrier" in str(traced.jaxpr)
        found[name] = traced.lower().compile()(*arguments).grad
    assert is_stored == {"cpu": False, "TPU v5": True}
    assert_trees_equal(found["TPU v5"], found["cpu"])


def test_shards_of_the_perturbed_parameters_are_left_to_xla(monkeypatch, set_mesh):
    """They are stored before they are gathered; to ask for it takes memory."""
    monkeypatch.setattr(passes, "device_kind", lambda: "TPU v5")
    set_mesh(fsdp=8)
    traced = jax.jit(penalize(mlp_loss, Gnp(r=0.1, alpha=0.8))).trace(*on_mesh())
    assert "optimization_barrier" not in str(traced.jaxpr)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: make tpu-compiler")
def test_no_matrix_product_computes_the_perturbation_again():
    """A product of the second pass reads w + eps many times, for each of its tiles."""
    command = [sys.executable, str(TESTS / "perturbed_on_tpu.py"), "v5p"]
    env = (
        os.environ
        | CHIPS["v5p"].environment()
        | {"PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS.parent / 'kernels'}"}
    )
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    computations = done.stdout.split("\n\n")
    products = [text for text in computations if " convolution(" in text]
    assert len(products) >= 2 * (2 + 3), "two passes, each with two products forward and three backward"
    assert any("gnp_perturb" in text for text in computations)
    assert not any("gnp_perturb" in text for text in products)
