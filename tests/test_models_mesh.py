"""Numbers are equal on every mesh, parameters and gradients have the right sharding, some options change no number."""

import functools
import math
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import FSDP, TENSOR, P, batch_spec, make_mesh, sharding
from gnp_scale.models import (
    cifar_resnet,
    convnext,
    mixer,
    pyramidnet,
    recompute,
    registry,
    resnet,
    shake_shake,
    swin,
    vgg,
    wide_resnet,
)
from gnp_scale.models.registry import batch_stats_of

pytestmark = pytest.mark.usefixtures("unoptimized")

EPS = np.finfo(np.float32).eps
IMAGE_SHAPE, NUM_CLASSES, NUM_EXAMPLES = (8, 8, 3), 10, 16

TRANSFORMER = ModelConfig("vit_mu", patch_size=2, depth=2, dropout=0.1, drop_path=0.1)
DEIT = ModelConfig("deit3_s", patch_size=2, depth=2, width=32, num_heads=2, pool="token", drop_path=0.1)
CAIT = ModelConfig("cait_xxs24", patch_size=2, depth=1, width=32, num_heads=2, drop_path=0.1)
MANY_HEADS = replace(CAIT, num_heads=8)
PARALLEL = ModelConfig("vit_22b", patch_size=2, depth=2, width=32, num_heads=2)
SWIN = ModelConfig("swin_t", dropout=0.1, drop_path=0.1)
RESNET = ModelConfig("resnet18", num_bn_groups=2)
WIDE = ModelConfig("wrn_16_4", num_bn_groups=2, dropout=0.1)
SHAKE_SHAKE = ModelConfig("shake_shake_26_2x32d", num_bn_groups=2)
PYRAMIDNET = ModelConfig("pyramidnet_110_48", num_bn_groups=2, shake_drop=0.5)
CIFAR_RESNET = ModelConfig("resnet20", num_bn_groups=2)
VGG = ModelConfig("vgg16", dropout=0.1)
MIXER = ModelConfig("mixer_s", patch_size=2, drop_path=0.1)
CONVNEXT = ModelConfig("convnext_t", drop_path=0.1)
# Every option of a vision transformer that adds parameters, or changes what its tokens are.
OPTIONS = replace(
    TRANSFORMER, depth=1, num_registers=2, position="rope", mlp="swiglu", pool="attention", rep_layer=True
)


def slow(*configs):
    return [pytest.param(config, marks=pytest.mark.slow) for config in configs]


SLOW = slow(VGG, MIXER, CONVNEXT)
MESHES = [(1, 8, 1), (2, 2, 2)]
OTHER_MESHES = [(1, 1, 1), (8, 1, 1), (1, 4, 2)]


@pytest.fixture(autouse=True)
def small_layouts(monkeypatch):
    """Few and narrow blocks: a program for 8 devices is slow to compile, and a wide convolution is slow to run here."""
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (resnet.BasicBlock, (1, 1)))
    monkeypatch.setattr(resnet, "WIDTH", 16)  # So the head has another shape than the logits.
    monkeypatch.setitem(swin.LAYOUTS, "swin_t", (32, (2, 1)))
    monkeypatch.setitem(wide_resnet.LAYOUTS, "wrn_16_4", (10, 1))
    monkeypatch.setitem(shake_shake.LAYOUTS, "shake_shake_26_2x32d", (8, 4))
    monkeypatch.setitem(pyramidnet.LAYOUTS, "pyramidnet_110_48", (pyramidnet.BasicBlock, 8, 5))
    monkeypatch.setitem(cifar_resnet.LAYOUTS, "resnet20", 1)
    monkeypatch.setitem(vgg.LAYOUTS, "vgg16", ((3, 8), (1, 16)))
    monkeypatch.setattr(vgg, "HIDDEN", 32)
    monkeypatch.setitem(convnext.SIZES, "convnext_t", convnext.ConvNeXtConfig((1, 1), (8, 32)))
    monkeypatch.setitem(mixer.SIZES, "mixer_s", mixer.MixerConfig(32, 2, 24, 64))


def place(x):
    """Shards the examples of `x` over the current mesh."""
    return x if jax.sharding.get_mesh().empty else jax.device_put(x, sharding(batch_spec(x.ndim)))


def image_shape(config: ModelConfig) -> tuple[int, int, int]:
    return (64, 64, 3) if config.name == SWIN.name else IMAGE_SHAPE


def init(config: ModelConfig):
    """Model, parameters moved from their initial values (a zero head passes no gradient back), and batch statistics."""
    model = registry.create(config, image_shape(config), NUM_CLASSES, NUM_EXAMPLES)
    params, batch_stats = jax.jit(model.init)(jax.random.key(0))

    def move(w: jax.Array) -> jax.Array:
        noise = np.random.default_rng(w.size).normal(size=w.shape, scale=0.05).astype(np.float32)
        return jax.device_put(np.asarray(w) + noise, w.sharding)

    return model, jax.tree.map(move, params), batch_stats


def loss_fn(model: registry.Model, batch_stats, image_shape=IMAGE_SHAPE):
    """A function from parameters to the loss, the logits and the new batch statistics."""
    rng = np.random.default_rng(0)
    image = place(rng.normal(size=(NUM_EXAMPLES, *image_shape)).astype(np.float32))
    weight = place(rng.normal(size=(NUM_EXAMPLES, NUM_CLASSES)).astype(np.float32))
    key_B = place(jax.random.split(jax.random.key(1), NUM_EXAMPLES))

    def loss(params):
        network = model.network(params, batch_stats)
        logits = network(image, train=True, key_B=key_B)
        return jnp.mean(jnp.square(logits - weight)), (logits, batch_stats_of(network))

    return loss


def run(config: ModelConfig):
    """Logits, gradients and batch statistics of one training pass, as NumPy arrays."""
    model, params, batch_stats = init(config)
    grads, (logits, stats) = jax.jit(jax.grad(loss_fn(model, batch_stats, image_shape(config)), has_aux=True))(params)
    assert jax.tree.map(jax.typeof, grads) == jax.tree.map(jax.typeof, params)
    assert jax.tree.map(jax.typeof, stats) == jax.tree.map(jax.typeof, batch_stats)
    return jax.tree.map(np.asarray, {"logits": logits, "grads": grads, "stats": stats})


run_alone = functools.cache(run)
"""The same without a mesh; many tests compare other programs with these numbers."""


def assert_close(got, expected, num_ulps: int, smallest: float = 0) -> None:
    """Each entry is within `num_ulps` units in the last place of the largest entry of its leaf, or of `smallest`."""

    def compare(path, a, b):
        np.testing.assert_allclose(
            a, b, rtol=0, atol=num_ulps * EPS * max(np.abs(b).max(), smallest), err_msg=jax.tree_util.keystr(path)
        )

    jax.tree.map_with_path(compare, got, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        TRANSFORMER,
        RESNET,
        *(
            pytest.param(config, marks=pytest.mark.long)
            for config in (PARALLEL, DEIT, CAIT, SWIN, WIDE, SHAKE_SHAKE, PYRAMIDNET)
        ),
    ],
    ids=lambda config: config.name,
)
@pytest.mark.parametrize("meshes", [MESHES, pytest.param(OTHER_MESHES, marks=pytest.mark.long)], ids=["some", "others"])
def test_numbers_do_not_depend_on_the_mesh(config, meshes):
    expected = run_alone(config)
    for shape in meshes:
        with jax.set_mesh(make_mesh(MeshConfig(*shape), jax.devices()[: math.prod(shape)])):
            # A mesh changes only the order of sums. Another order changes a sum of n float32 terms by about sqrt(n)
            # ulps. A bias of a convolutional network sums n = 16 * 8 * 8 terms, and several layers add their errors.
            # In a PyramidNet, normalisation removes the biases of a stream: their gradients are only rounding errors.
            assert_close(run(config), expected, num_ulps=64, smallest=2**-7 if config is PYRAMIDNET else 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        CONVNEXT,
        OPTIONS,
        *(pytest.param(config, marks=pytest.mark.long) for config in (CIFAR_RESNET, VGG, MIXER, MANY_HEADS)),
    ],
    ids=lambda config: config.name,
)
def test_numbers_of_further_networks_are_those_of_a_mesh_with_all_axes(config, set_mesh):
    expected = run_alone(config)
    set_mesh(2, 2, 2)
    # LayerNorm removes the bias of a token in a Mixer: its gradient is only a rounding error.
    assert_close(run(config), expected, num_ulps=64, smallest=2**-7 if config is MIXER else 0)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [pytest.param((1, 8, 1), marks=pytest.mark.long), (1, 4, 2)])
def test_kernels_stored_along_another_dimension_give_the_same_numbers(shape, set_mesh):
    """No mesh divides a width of 34: the MLP is sharded along its hidden channels, and attention is replicated."""
    config = replace(TRANSFORMER, width=34, depth=1)
    expected = run(config)
    set_mesh(*shape)
    _, params, _ = init(config)
    assert params["blocks"]["00"]["mlp"]["in_proj"]["kernel"].sharding.spec == P(None, (TENSOR, FSDP))
    assert_close(run(config), expected, num_ulps=64)


@pytest.mark.parametrize("config", [TRANSFORMER, OPTIONS, RESNET], ids=lambda config: config.name)
def test_parameters_are_shared_out_over_the_devices(config, set_mesh):
    set_mesh(replica=1, fsdp=4, tensor=2)
    model = registry.create(config, IMAGE_SHAPE, NUM_CLASSES, NUM_EXAMPLES)
    params, _ = jax.jit(model.init)(jax.random.key(0))
    large = [leaf for leaf in jax.tree.leaves(params) if leaf.size >= 2**11]
    assert large
    for leaf in large:
        assert all(shard.data.nbytes == leaf.nbytes // 8 for shard in leaf.addressable_shards)


@pytest.mark.parametrize(
    "config", [TRANSFORMER, OPTIONS, RESNET, *slow(CAIT, SWIN), *SLOW], ids=lambda config: config.name
)
def test_whole_kernels_are_not_kept_for_the_backward_pass(config, set_mesh):
    set_mesh(fsdp=8)
    model, params, batch_stats = init(config)
    kernels = {
        leaf.shape: leaf.sharding.spec for path, leaf in jax.tree.leaves_with_path(params) if "kernel" in str(path)
    }
    # On CPUs a matrix may be kept transposed.
    transposed = {(shape[::-1], P(*spec[::-1])) for shape, spec in kernels.items() if len(shape) == 2}
    allowed = {*kernels.items(), *transposed}
    shapes = {shape for shape, _ in allowed}
    loss = loss_fn(model, batch_stats, image_shape(config))
    kept = [leaf for leaf in residuals_of(loss, params) if leaf.shape in shapes]
    assert len(kept) >= len(kernels)
    different = [leaf for leaf in kept if (leaf.shape, leaf.sharding.spec) not in allowed]
    assert not different


def residuals_of(loss, params) -> list[jax.ShapeDtypeStruct]:
    return jax.tree.leaves(jax.eval_shape(lambda params: jax.vjp(loss, params, has_aux=True)[1], params))


@pytest.mark.slow
@pytest.mark.parametrize("scan_layers", [False, True])
def test_remat_keeps_no_activation_inside_a_block_and_changes_no_number(scan_layers):
    config = replace(TRANSFORMER, scan_layers=scan_layers)
    kept = {}
    for remat in ("none", "block"):
        model, params, batch_stats = init(replace(config, remat=remat))
        residuals = residuals_of(loss_fn(model, batch_stats), params)
        hidden = (NUM_EXAMPLES, 16, 128)
        kept[remat] = sum(residual.shape[-3:] == hidden for residual in residuals)
    assert kept["none"] > 0
    assert kept["block"] == 0
    # The same sums, but XLA may fuse and order them differently.
    assert_close(run(replace(config, remat="block")), run_alone(config), num_ulps=16)


@pytest.mark.slow
def test_a_scan_on_an_accelerator_stores_one_array_of_the_hidden_layer(monkeypatch):
    """Its input, the result of a product; without this a scan also stores what the derivative of the GELU needs."""
    config, kept, results = replace(TRANSFORMER, scan_layers=True), {}, {}
    for name in ("cpu", "tpu"):
        monkeypatch.setattr(recompute, "platform", lambda name=name: name)
        model, params, batch_stats = init(config)
        residuals = residuals_of(loss_fn(model, batch_stats), params)
        kept[name] = sum(residual.shape[-3:] == (NUM_EXAMPLES, 16, 128) for residual in residuals)
        results[name] = run(config)
    assert (kept["cpu"] > 1, kept["tpu"]) == (True, 1)
    assert_close(results["tpu"], results["cpu"], num_ulps=16)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "remat"),
    [(TRANSFORMER, "none"), pytest.param(replace(OPTIONS, depth=2), "block", marks=pytest.mark.long)],
)
def test_scanned_blocks_are_the_same_blocks_stacked(config, remat):
    def stacked(tree):
        blocks = jax.tree.map(lambda *leaves: np.stack(leaves), *tree["blocks"].values())
        return {**tree, "blocks": blocks}

    scanned = replace(config, scan_layers=True, remat=remat)
    (model, params, _), (scanned_model, scanned_params, _) = (
        (model, *jax.jit(model.init)(jax.random.key(0)))
        for model in (registry.create(option, IMAGE_SHAPE, NUM_CLASSES, NUM_EXAMPLES) for option in (config, scanned))
    )
    jax.tree.map(np.testing.assert_array_equal, scanned_params, stacked(params))

    # Gradients at the same parameters. The parameters of `init` differ, because its noise depends on the leaf's size.
    _, params, _ = init(config)
    grads, (logits, _) = jax.jit(jax.grad(loss_fn(model, {}), has_aux=True))(params)
    scanned_params = jax.tree.map(jnp.asarray, stacked(params))
    scanned_grads, (scanned_logits, _) = jax.jit(jax.grad(loss_fn(scanned_model, {}), has_aux=True))(scanned_params)
    assert_close((scanned_logits, scanned_grads), (logits, stacked(grads)), num_ulps=16)


def test_scanned_blocks_are_sharded_like_single_ones(set_mesh):
    set_mesh(fsdp=4, tensor=2)
    _, params, _ = init(TRANSFORMER)
    scanned_model, scanned_params, _ = init(replace(TRANSFORMER, scan_layers=True))

    def check(scanned, single):
        assert tuple(scanned.sharding.spec) == (None, *single.sharding.spec)

    jax.tree.map(check, scanned_params["blocks"], params["blocks"]["00"])
    grads, _ = jax.eval_shape(jax.grad(loss_fn(scanned_model, {}), has_aux=True), scanned_params)
    jax.tree.map(lambda g, w: np.testing.assert_equal(g.sharding.spec, w.sharding.spec), grads, scanned_params)


@pytest.mark.parametrize("config", [DEIT, CAIT, SWIN, SHAKE_SHAKE, PYRAMIDNET], ids=lambda config: config.name)
def test_bfloat16_networks_multiply_in_bfloat16_and_have_float32_logits_and_gradients(config):
    """Not all products: the head, gradients of kernels and others sum in float32. A float32 network has none."""
    shape = image_shape(config)
    model = registry.create(replace(config, dtype="bfloat16"), shape, NUM_CLASSES, NUM_EXAMPLES)
    params, stats = jax.eval_shape(model.init, jax.random.key(0))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stats)
    gradient = jax.make_jaxpr(jax.grad(loss_fn(model, zeros, shape), has_aux=True))(params)
    assert all(leaf.dtype == np.float32 for leaf in gradient.out_avals)
    products = re.findall(r":(bf16|f32)\S* = (?:dot_general|conv_general_dilated)\[", str(gradient))
    assert products.count("bf16") > products.count("f32")


# bfloat16 has 8 bits: an entry has a relative error of 2^-9, and the errors of a few layers add up. ReLUs add errors of
# gradients: an input within 2^-9 of 0 (one in 2^8) may change sign, and so its whole gradient: sqrt(2^-8) a layer.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "grad_error"),
    [
        (TRANSFORMER, 2**-5),
        (OPTIONS, 2**-5),
        pytest.param(PARALLEL, 2**-5, marks=pytest.mark.long),
        pytest.param(DEIT, 2**-5, marks=pytest.mark.long),
        pytest.param(CAIT, 2**-5, marks=pytest.mark.long),
        pytest.param(SWIN, 2**-5, marks=pytest.mark.long),
        (RESNET, 2**-3),
        pytest.param(VGG, 2**-3, marks=pytest.mark.long),
        pytest.param(WIDE, 2**-3, marks=pytest.mark.long),
        (CIFAR_RESNET, 2**-3),
        pytest.param(SHAKE_SHAKE, 2**-3, marks=pytest.mark.long),
        pytest.param(PYRAMIDNET, 2**-3, marks=pytest.mark.long),
        (MIXER, 2**-5),
        (CONVNEXT, 2**-5),
    ],
)
def test_bfloat16_is_close_to_float32_and_keeps_logits_and_gradients_float32(config, grad_error):
    exact = run_alone(config)
    rounded = run(replace(config, dtype="bfloat16"))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(rounded))
    for part, error in [("logits", 2**-5), ("grads", grad_error)]:
        a, b = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree[part])]) for tree in (exact, rounded))
        assert 0 < np.linalg.norm(a - b) < error * np.linalg.norm(a)


@pytest.mark.parametrize("config", [TRANSFORMER, WIDE, SHAKE_SHAKE, PYRAMIDNET, *SLOW], ids=lambda config: config.name)
def test_evaluation_drops_nothing_and_leaves_the_batch_statistics(config):
    model, params, batch_stats = init(config)
    image = jnp.ones((2, *IMAGE_SHAPE))

    @jax.jit
    def evaluate(key_B):
        network = model.network(params, batch_stats)
        return network(image, train=False, key_B=key_B), batch_stats_of(network)

    with_keys, stats = evaluate(jax.random.split(jax.random.key(0)))
    np.testing.assert_array_equal(with_keys, evaluate(None)[0])
    jax.tree.map(np.testing.assert_array_equal, stats, batch_stats)
