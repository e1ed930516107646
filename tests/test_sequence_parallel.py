"""Tokens sharded over `tensor` between the layers that shard channels: the same numbers, and less is kept."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_models_mesh as small

from gnp_scale.config import ConfigError
from gnp_scale.mesh import TENSOR
from gnp_scale.models import recompute, registry

pytestmark = pytest.mark.usefixtures("unoptimized")

SCANNED = replace(small.TRANSFORMER, scan_layers=True, remat="dots")
# With a class token and 3 registers, 20 tokens.
TOKEN = replace(small.DEIT, num_registers=3, dropout=0.1)
PARALLEL = replace(small.PARALLEL, pool="attention", mlp="swiglu", position="rope", remat="block")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "shape"),
    [
        pytest.param(SCANNED, (2, 2, 2), id="scan"),
        pytest.param(TOKEN, (1, 2, 4), id="deit", marks=pytest.mark.long),
        pytest.param(PARALLEL, (1, 4, 2), id="22b", marks=pytest.mark.long),
    ],
)
def test_numbers_are_those_of_one_device(config, shape, set_mesh):
    """Logits, gradients with the masks of dropout and drop-path, and features in evaluation."""

    def features(config):
        model, params, _ = small.init(config)
        image = np.random.default_rng(2).normal(size=(small.NUM_EXAMPLES, *small.IMAGE_SHAPE)).astype(np.float32)
        return np.asarray(jax.jit(model.features(params, {}))(small.place(image)))

    config = replace(config, num_heads=4, width=32)
    expected = small.run(config), features(config)
    set_mesh(*shape)
    sharded = replace(config, sequence_parallel=True)
    small.assert_close((small.run(sharded), features(sharded)), expected, num_ulps=64)


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 1)])
def test_one_shard_of_tokens_is_all_of_them(shape, set_mesh):
    """The program is that without the option."""
    set_mesh(*shape)

    def program(config):
        model, params, _ = small.init(config)
        return jax.jit(jax.grad(small.loss_fn(model, {}), has_aux=True)).lower(params).as_text()

    assert program(replace(SCANNED, sequence_parallel=True)) == program(SCANNED)


@pytest.mark.parametrize(
    ("remat", "scan_layers"), [("none", False), ("none", True), ("dots", False), ("dots", True), ("block", True)]
)
def test_what_a_block_keeps_has_its_tokens_sharded(remat, scan_layers, set_mesh, monkeypatch):
    """Of the width: inputs of blocks and of layers, and results of products; as on an accelerator."""
    monkeypatch.setattr(recompute, "platform", lambda: "tpu")
    set_mesh(tensor=2)
    config = replace(small.TRANSFORMER, scan_layers=scan_layers, remat=remat, sequence_parallel=True)
    model, params, _ = small.init(config)
    loss = small.loss_fn(model, {})
    kept = [x for x in small.residuals_of(loss, params) if x.shape[-3:] == (small.NUM_EXAMPLES, 16, 32)]
    assert kept
    assert {x.sharding.spec[-2] for x in kept} == {TENSOR}


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"pool": "token"}, "17 do not divide over the tensor axis of 4: make model.num_registers 3,"),
        (
            {"pool": "token", "num_registers": 2},
            "19 do not divide over the tensor axis of 4: make model.num_registers 3,",
        ),
    ],
)
def test_tokens_that_do_not_divide_are_refused_with_what_to_change(options, advice, set_mesh):
    set_mesh(fsdp=2, tensor=4)
    config = replace(small.TRANSFORMER, num_heads=4, sequence_parallel=True, **options)
    model = registry.create(config, small.IMAGE_SHAPE, 10, 16)
    with pytest.raises(ConfigError, match=advice) as error:
        jax.eval_shape(lambda: model.network(model.init(jax.random.key(0))[0], {})(jnp.ones((16, 8, 8, 3)), train=True))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("config", [small.CAIT, small.SWIN, small.MIXER, small.RESNET], ids=lambda config: config.name)
def test_networks_that_cannot_shard_tokens_refuse(config):
    with pytest.raises(ConfigError, match=r"model\.sequence_parallel is True, which \w+ does not use"):
        registry.create(replace(config, sequence_parallel=True), (64, 64, 3), 10, 16)
