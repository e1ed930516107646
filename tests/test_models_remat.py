"""Recomputed blocks: the backward pass keeps fewer numbers, and no number changes."""

from dataclasses import replace
from typing import get_args

import jax
import jax.numpy as jnp
import pytest
import test_models_mesh as small
from test_models_mesh import small_layouts  # noqa: F401

from gnp_scale.config.model import Remat
from gnp_scale.models import registry

CASES = [
    small.SWIN,
    small.CAIT,
    small.MIXER,
    small.CONVNEXT,
    small.RESNET,
    small.WIDE,
    small.CIFAR_RESNET,
    small.VGG,
    small.SHAKE_SHAKE,
    small.PYRAMIDNET,
    small.OPTIONS,
]
LONG = [
    small.SWIN,
    small.CAIT,
    small.PYRAMIDNET,
    small.SHAKE_SHAKE,
    small.WIDE,
    small.CIFAR_RESNET,
    small.VGG,
    small.MIXER,
    small.CONVNEXT,
]
"""Their programs take the longest to compile, or their blocks are recomputed as those of RESNET or TRANSFORMER are."""


def kept_bytes(config) -> int:
    """Bytes in the memory of a device that the backward pass gets from the forward pass."""
    shape = small.image_shape(config)
    model = registry.create(config, shape, small.NUM_CLASSES, small.NUM_EXAMPLES)

    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    loss = small.loss_fn(model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stats), shape)
    residuals = jax.make_jaxpr(lambda params: jax.vjp(loss, params, has_aux=True)[1])(params).out_avals
    return sum(x.size * x.dtype.itemsize for x in residuals if x.memory_space is jax.memory.Space.Device)


@pytest.mark.parametrize("config", CASES, ids=lambda config: config.name)
def test_each_kind_of_recomputation_keeps_less_than_the_one_before(config):
    none, dots, block, offload = (kept_bytes(replace(config, remat=remat)) for remat in get_args(Remat))
    assert none > dots > block > offload
    assert block < 0.9 * none


NUMBERS = [
    *(pytest.param(config, "block", marks=[pytest.mark.long] * (config in LONG)) for config in CASES),
    *((small.OPTIONS, remat) for remat in ("dots", "offload")),
    *(pytest.param(small.RESNET, remat, marks=pytest.mark.long) for remat in ("dots", "offload")),
    (replace(small.TRANSFORMER, scan_layers=True), "offload"),
    pytest.param(replace(small.TRANSFORMER, scan_layers=True), "dots", marks=pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "remat"), NUMBERS, ids=lambda value: getattr(value, "name", value))
def test_recomputing_changes_no_number(config, remat, unoptimized):
    """Logits, gradients and batch statistics; XLA may order sums differently."""
    # Gradients that are only rounding errors, as in the other tests.
    smallest = 2**-7 if config in (small.MIXER, small.PYRAMIDNET) else 0
    small.assert_close(small.run(replace(config, remat=remat)), small.run_alone(config), num_ulps=64, smallest=smallest)
