"""Recomputed blocks: the backward pass keeps fewer numbers, and no number changes."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest
import test_models_mesh as small
from test_models_mesh import small_layouts  # noqa: F401

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
LONG = [small.SWIN, small.CAIT, small.PYRAMIDNET]
"""Their programs take the longest to compile."""


def kept_bytes(config) -> int:
    """Bytes that the backward pass gets from the forward pass."""
    shape = small.image_shape(config)
    model = registry.create(config, shape, small.NUM_CLASSES, small.NUM_EXAMPLES)

    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    loss = small.loss_fn(model, jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stats), shape)
    residuals = jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals))


@pytest.mark.parametrize("config", CASES, ids=lambda config: config.name)
def test_recomputed_blocks_keep_less(config):
    assert kept_bytes(replace(config, remat=True)) < 0.9 * kept_bytes(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [pytest.param(config, marks=pytest.mark.long) if config in LONG else config for config in CASES],
    ids=lambda config: config.name,
)
def test_recomputing_changes_no_number(config, unoptimized):
    """Logits, gradients and batch statistics; XLA may order sums differently."""
    # Gradients that are only rounding errors, as in the other tests.
    smallest = 2**-7 if config in (small.MIXER, small.PYRAMIDNET) else 0
    small.assert_close(small.run(replace(config, remat=True)), small.run(config), num_ulps=64, smallest=smallest)
