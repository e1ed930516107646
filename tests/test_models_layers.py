"""The layers against independent oracles: attention, MLP, batch statistics of groups, dropout and drop path."""

from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import collectives
from flax import nnx

from gnp_scale.config import ModelConfig
from gnp_scale.mesh import AXES, BATCH, TENSOR, P, batch_spec, sharding
from gnp_scale.models import convnext, mixer, registry, transformer, vgg, vit
from gnp_scale.models.attention import attend, by_xla
from gnp_scale.models.batch_norm import BatchNorm
from gnp_scale.models.conv_layers import _max_pool, max_pool
from gnp_scale.models.layers import Dense, LayerNorm, add_bias, drop_path, dropout, fold
from gnp_scale.models.transformer import Block, ParallelBlock, ViTConfig
from gnp_scale.models.windows import from_windows, shift_mask, to_windows
from gnp_scale.monitoring.flops import flops

pytestmark = pytest.mark.usefixtures("unoptimized")


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomised(module: Any) -> tuple[Any, dict]:
    """`module` with every parameter moved from its initial value, and its parameters in float64."""
    graph, params = nnx.split(module)
    params = jax.tree.map(lambda w: w + 0.3 * normal(w.shape, w.size), nnx.to_pure_dict(params))
    return nnx.merge(graph, params), jax.tree.map(lambda w: np.asarray(w, np.float64), params)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def layer_norm(w: dict, x: np.ndarray) -> np.ndarray:
    return unit(x - x.mean(-1, keepdims=True)) * w["scale"] + w["bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(w: dict, x: np.ndarray) -> np.ndarray:
    """One example; computes one head at a time."""
    out = np.zeros_like(x)
    for head in range(w["out_proj"]["kernel"].shape[0]):
        query, key, value = (
            x @ w["in_proj"]["kernel"][:, i, head] + w["in_proj"].get("bias", np.zeros((3, head + 1, 1)))[i, head]
            for i in range(3)
        )
        if "norm_query" in w:
            query, key = unit(query) * w["norm_query"]["scale"], unit(key) * w["norm_key"]["scale"]
        weight = np.exp(query @ key.T / np.sqrt(query.shape[-1]))
        out += weight / weight.sum(-1, keepdims=True) @ value @ w["out_proj"]["kernel"][head]
    return out + w["out_proj"].get("bias", 0)


def mlp(w: dict, x: np.ndarray) -> np.ndarray:
    hidden = gelu(x @ w["in_proj"]["kernel"] + w["in_proj"]["bias"])
    return hidden @ w["out_proj"]["kernel"] + w["out_proj"]["bias"]


def block(w: dict, x: np.ndarray) -> np.ndarray:
    x = x + attention(w["attention"], layer_norm(w["norm_attention"], x))
    return x + mlp(w["mlp"], layer_norm(w["norm_mlp"], x))


def parallel_block(w: dict, x: np.ndarray) -> np.ndarray:
    y = unit(x) * w["norm"]["scale"]
    return x + attention(w["attention"], y) + mlp(w["mlp"], y)


@pytest.mark.parametrize(
    ("layer", "oracle", "parallel"), [(Block, block, False), (ParallelBlock, parallel_block, True)]
)
def test_transformer_block_is_the_published_one(layer, oracle, parallel):
    module, w = randomised(layer(jax.random.key(0), ViTConfig(32, 1, 64, 4, parallel), 0.0))
    x_BxNxD = normal((2, 7, 32))
    expected = np.stack([oracle(w, x.astype(np.float64)) for x in x_BxNxD])
    got = module(jnp.asarray(x_BxNxD), 0, None, None)
    # Sums of up to 64 float32 products, in three successive layers.
    np.testing.assert_allclose(got, expected, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(expected).max())


def test_attention_and_its_gradient_are_those_of_the_formula(set_mesh):
    """In float64, against JAX's own attention, which differentiates the softmax; heads are sharded."""
    set_mesh(replica=2, fsdp=2, tensor=2)
    heads = sharding(P(BATCH, None, TENSOR, None))
    with jax.enable_x64():
        query, key, value, d_out = (
            jax.device_put(jax.random.normal(jax.random.key(n), (4, 7, 2, 8), jnp.float64), heads) for n in range(4)
        )

        def of(attention):
            return jax.jit(lambda *x: jax.vjp(attention, *x)[1](d_out))(5 * query, key, value)

        for got, expected in zip(of(attend), of(jax.nn.dot_product_attention), strict=True):
            # Logits are float32 for any type of the arrays.
            np.testing.assert_allclose(
                got, expected, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(expected).max()
            )


def test_attention_with_a_bias_and_its_gradient_are_those_of_the_formula(set_mesh):
    """The bias is that of some windows; its gradient is the sum over the examples, which are on several devices."""
    set_mesh(replica=2, fsdp=2, tensor=2)
    with jax.enable_x64():
        query, key, value, d_out = (
            jax.device_put(
                jax.random.normal(jax.random.key(n), (8, 3, 7, 2, 4), jnp.float64), sharding(batch_spec(5, AXES))
            )
            for n in range(4)
        )
        bias = jax.random.normal(jax.random.key(4), (1, 3, 2, 7, 7), jnp.float64)

        def formula(query, key, value, bias):
            logits = jnp.einsum("bmqhk,bmshk->bmhqs", query, key) / np.sqrt(4) + bias
            return jnp.einsum("bmhqs,bmshk->bmqhk", jax.nn.softmax(logits), value)

        def of(attention):
            return jax.jit(lambda *x: (attention(*x), *jax.vjp(attention, *x)[1](d_out)))(query, key, value, bias)

        for got, expected in zip(of(by_xla), of(formula), strict=True):
            np.testing.assert_allclose(
                got, expected, rtol=0, atol=16 * np.finfo(np.float32).eps * np.abs(expected).max()
            )


def test_tokens_of_a_shifted_window_see_only_their_neighbours():
    """In an image of 4x6 tokens with windows of 2x3, shifted by 1x1: distances in the image are less than a window."""
    row, column = np.meshgrid(np.arange(4), np.arange(6), indexing="ij")
    place_HxWx2 = np.roll(np.stack([row, column], axis=-1), (-1, -1), (0, 1))
    place_MxNx2 = np.asarray(to_windows(jnp.asarray(place_HxWx2)[None], (2, 3)))[0]
    np.testing.assert_array_equal(from_windows(jnp.asarray(place_MxNx2)[None], (4, 6), (2, 3))[0], place_HxWx2)
    distance = np.abs(place_MxNx2[:, :, None] - place_MxNx2[:, None, :])
    mask_MxNxN = shift_mask((4, 6), (2, 3), (1, 1))
    np.testing.assert_array_equal(mask_MxNxN == 0, np.all(distance < (2, 3), axis=-1))


def test_attention_stands_logits_that_float32_cannot_exponentiate():
    query, key, value = (jnp.full((1, 3, 1, 4), level, jnp.bfloat16) for level in (300.0, 100.0, 2.0))
    out, backward = jax.vjp(attend, query, key.at[0, 1].set(-100), value)
    np.testing.assert_array_equal(out.astype(jnp.float32), 2.0)
    assert all(jnp.all(jnp.isfinite(gradient)) for gradient in backward(out))


def test_attention_in_bfloat16_keeps_no_float32_weights():
    """The backward pass keeps one N x N array, in bfloat16."""
    shapes = [jax.ShapeDtypeStruct((2, 32, 4, 8), jnp.bfloat16)] * 3
    kept = jax.tree.leaves(jax.eval_shape(lambda *x: jax.vjp(attend, *x)[1], *shapes))
    assert [x.dtype for x in kept if x.shape == (2, 4, 32, 32)] == [jnp.bfloat16]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("mean", [0, 1, 10, 100])
def test_layer_norm_loses_digits_only_where_the_mean_is_large(mean, dtype):
    """`mean` is in standard deviations. The oracle subtracts the mean first, in float64."""
    module = LayerNorm(jax.random.key(0), 256)
    x = jnp.asarray(normal((64, 256)) + mean, dtype)
    centred = np.asarray(x, np.float64) - np.asarray(x, np.float64).mean(-1, keepdims=True)
    expected = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-6)
    bound = 8 * np.finfo(np.float32).eps * (1 + mean**2) + (2**-8 if dtype == jnp.bfloat16 else 0)
    np.testing.assert_allclose(module(x).astype(jnp.float32), expected, rtol=0, atol=bound * np.abs(expected).max())


@pytest.mark.parametrize("num_groups", [1, 2, 8, 16])
def test_batch_norm_has_statistics_of_groups_of_consecutive_examples(num_groups, set_mesh):
    set_mesh(replica=2, fsdp=2, tensor=2)
    module, w = randomised(BatchNorm(jax.random.key(0), 3, 16 // num_groups))
    x_BxHxWxC = normal((16, 4, 4, 3)) + 3 * np.arange(1, 17, dtype=np.float32)[:, None, None, None]
    groups = x_BxHxWxC.astype(np.float64).reshape(num_groups, -1, 3)
    mean, variance = groups.mean(1, keepdims=True), groups.var(1, keepdims=True)
    expected = (groups - mean) / np.sqrt(variance + 1e-5) * w["scale"] + w["bias"]

    before = np.asarray(module.mean[...]), np.asarray(module.variance[...])
    got = module(jnp.asarray(x_BxHxWxC), train=True)
    # A float32 mean near 1600 is exact to 1e-4.
    np.testing.assert_allclose(got, expected.reshape(x_BxHxWxC.shape), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(module.mean[...], 0.9 * before[0] + 0.1 * mean.mean((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(module.variance[...], 0.9 * before[1] + 0.1 * variance.mean((0, 1)), rtol=1e-5)


@pytest.mark.parametrize("distance", [0, 1, 10, 100])
@pytest.mark.parametrize("num_groups", [1, 4])
def test_the_variance_loses_digits_only_where_the_running_mean_is_far_from_the_mean(num_groups, distance):
    """`distance` is in standard deviations. The mean of x is 1000, so squares of x itself would lose every digit."""
    module = BatchNorm(jax.random.key(0), 3, 16 // num_groups)
    module.mean[...] = jnp.full(3, 1000.0 - distance)
    x_BxHxWxC = normal((16, 8, 8, 3)) + 1000
    expected = x_BxHxWxC.astype(np.float64).reshape(num_groups, -1, 3).var(1).mean(0)
    module(jnp.asarray(x_BxHxWxC), train=True)
    got = (np.asarray(module.variance[...], np.float64) - 0.9) / 0.1
    # The second term is the rounding of the running variance, which is near 1 and gets a tenth of this variance.
    bound = 32 * np.finfo(np.float32).eps * (1 + distance**2) + 10 * np.finfo(np.float32).eps
    np.testing.assert_allclose(got, expected, rtol=bound)


@pytest.mark.parametrize(
    ("shape", "size"),
    [((8, 12, 12, 3), 3), ((8, 7, 9, 3), 3), ((8, 1, 2, 3), 3), ((8, 12, 12, 3), 2), ((8, 7, 2, 3), 2)],
    ids=str,
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_max_pool_is_that_of_xla(shape, size, dtype, set_mesh):
    """With integers, many entries of a window are equal and all sums are exact."""
    set_mesh(replica=2, fsdp=2, tensor=2)
    rng = np.random.default_rng(0)
    x_BxHxWxC = jax.device_put(jnp.asarray(rng.integers(-3, 1, shape), dtype), sharding(batch_spec(4, AXES)))
    dy_BxHxWxC = rng.integers(-9, 9, jax.eval_shape(partial(max_pool, size=size), x_BxHxWxC).shape)

    def gradient(pool):
        return jax.jit(jax.grad(lambda x: jnp.sum(pool(x, size).astype(jnp.float32) * dy_BxHxWxC)))(x_BxHxWxC)

    got = gradient(max_pool)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(jnp.float32), gradient(_max_pool).astype(jnp.float32))


def test_the_gradient_of_max_pool_needs_no_activation():
    """If XLA computed it again and rounded it otherwise, it would equal no maximum, and the gradient would be lost."""
    _, backward = jax.vjp(max_pool, jnp.ones((2, 6, 6, 3)))
    assert [leaf.dtype for leaf in jax.tree.leaves(backward)] == [jnp.uint8]


@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize(("num_groups", "num_forward", "num_backward"), [(1, 1, 2), (2, 1, 2), (8, 0, 1), (16, 0, 1)])
def test_batch_norm_of_groups_on_one_device_each_communicates_at_the_end_only(
    num_groups, num_forward, num_backward, mesh, set_mesh
):
    """Only gradients and running statistics are communicated, together, and no layer waits for them."""
    set_mesh(*mesh)
    module = BatchNorm(jax.random.key(0), 3, 32 // num_groups)
    graph, *arrays = nnx.split(module, nnx.Param, nnx.BatchStat)
    params, stats = map(nnx.to_pure_dict, arrays)

    def run(params, x):
        module = nnx.merge(graph, params, stats)
        return module(x, train=True), nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))

    def loss(params, x):
        y, stats = run(params, x)
        return jnp.sum(y**3), stats

    x = jax.device_put(jnp.ones((32, 4, 4, 3)), sharding(batch_spec(4, AXES)))
    both = jax.grad(loss, argnums=(0, 1), has_aux=True)
    for fn, expected in ((lambda *args: run(*args)[0], num_forward), (both, num_backward)):
        found = collectives(jax.jit(fn).lower(params, x).compile().as_text())
        assert [one.kind for one in found] == ["all-reduce"] * expected


def test_batch_norm_evaluates_with_the_running_statistics_and_leaves_them():
    module, w = randomised(BatchNorm(jax.random.key(0), 3, 1))
    module.variance[...] = jnp.asarray([0.5, 1.0, 2.0])
    before = np.asarray(module.mean[...]), np.asarray(module.variance[...])
    x_BxHxWxC = normal((5, 4, 4, 3))
    expected = (x_BxHxWxC - before[0]) / np.sqrt(before[1] + 1e-5) * w["scale"] + w["bias"]
    np.testing.assert_allclose(module(jnp.asarray(x_BxHxWxC), train=False), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(module.mean[...], before[0])
    np.testing.assert_array_equal(module.variance[...], before[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_gradient_of_a_bias_is_summed_in_float32(dtype, set_mesh):
    """It sums over all examples and tokens; a bfloat16 sum of ones would stop at 256."""
    set_mesh(replica=2, fsdp=2, tensor=2)
    x_BxNxD = jax.device_put(jnp.zeros((64, 100, 4), jnp.bfloat16), sharding(P(BATCH, None, TENSOR)))
    gradient = jax.jit(jax.grad(lambda bias, x: jnp.sum(add_bias(x, bias).astype(jnp.float32))))
    bias_D = jax.device_put(jnp.zeros(4, dtype), sharding(P(TENSOR)))
    np.testing.assert_array_equal(gradient(bias_D, x_BxNxD).astype(jnp.float32), np.full(4, 6400.0))


def test_the_gradients_of_positions_and_class_token_are_summed_over_examples_in_float32():
    """If a batch repeats one image, its gradient is the number of examples times the gradient of that image."""
    config = ModelConfig("vit_mu", patch_size=4, depth=1, pool="token", dtype="bfloat16")
    model = registry.create(config, (8, 8, 3), 10, 4000)
    params, stats = model.init(jax.random.key(0))
    params["head"]["kernel"] = jnp.asarray(normal((32, 10)))

    def loss(params: Any, num_examples: int) -> jax.Array:
        image_BxHxWxC = jnp.broadcast_to(normal((8, 8, 3)), (num_examples, 8, 8, 3))
        return jnp.sum(model.network(params, stats)(image_BxHxWxC, train=False)[:, 0])

    one, many = (jax.jit(jax.grad(loss), static_argnums=1)(params, number) for number in (1, 4000))
    for name in ("token", "position"):
        error = np.linalg.norm(many[name] - 4000 * one[name]) / np.linalg.norm(4000 * one[name])
        # The network itself rounds each entry.
        assert error < 0.01, (name, error)


ADVICE = {
    "transformer": (ModelConfig("vit_mu", patch_size=4), 64, 1, None),
    "one group": (ModelConfig("resnet18"), 64, 1, "--model.num-bn-groups 8, of 8 examples each, would cost none"),
    "parts": (ModelConfig("resnet18"), 64, 4, "--model.num-bn-groups 32, of 2 examples each, would cost none"),
    "one example each": (ModelConfig("resnet18"), 64, 8, None),
    "groups of its own": (ModelConfig("resnet18", num_bn_groups=2), 64, 1, None),
}


@pytest.mark.parametrize(("config", "batch_size", "num_parts", "expected"), ADVICE.values(), ids=ADVICE.keys())
def test_who_leaves_batch_statistics_to_the_default_is_told_what_they_cost(
    config, batch_size, num_parts, expected, set_mesh
):
    assert registry.create(config, (8, 8, 3), 10, batch_size).batch_norm_advice(batch_size, num_parts) is None
    set_mesh(replica=2, fsdp=2, tensor=2)
    advice = registry.create(config, (8, 8, 3), 10, batch_size).batch_norm_advice(batch_size, num_parts)
    assert advice is None if expected is None else expected in advice


@pytest.mark.parametrize("frozen", ["*", "stem/norm"])
def test_who_has_frozen_all_batch_statistics_is_not_told_what_they_cost(frozen, set_mesh):
    set_mesh(replica=2, fsdp=2, tensor=2)
    model = registry.create(ModelConfig("resnet18"), (8, 8, 3), 10, 64)
    advice = replace(model, has_frozen_norm=lambda path: fnmatchcase(path, frozen)).batch_norm_advice(64, 1)
    assert (advice is None) == (frozen == "*")


def test_dropout_keeps_the_mean_and_differs_between_examples():
    key_B = jax.random.split(jax.random.key(0), 4)
    x_BxN = jnp.ones((4, 10_000))
    y_BxN = np.asarray(dropout(x_BxN, 0.2, key_B))
    np.testing.assert_array_equal(np.unique(y_BxN), np.asarray([0, 1 / 0.8], np.float32))
    assert np.mean(y_BxN) == pytest.approx(1, abs=0.02)  # Eight standard deviations.
    assert len(np.unique(y_BxN, axis=0)) == 4
    assert dropout(x_BxN, 0.2, None) is x_BxN


def test_drop_path_drops_whole_examples_and_keeps_the_mean():
    key_B = jax.random.split(jax.random.key(0), 10_000)
    y_BxN = np.asarray(drop_path(jnp.ones((10_000, 3)), jnp.float32(0.25), key_B))
    np.testing.assert_allclose(np.unique(y_BxN, axis=0), [[0, 0, 0], [4 / 3, 4 / 3, 4 / 3]], rtol=1e-6)
    assert np.mean(y_BxN) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("name", ["vit_mu", "vit_22b"])
def test_every_draw_of_a_layer_and_an_example_has_a_key_of_its_own(name, monkeypatch):
    seen = []

    def recorded(drop, x, rate, key_B):
        seen.extend(map(tuple, jax.random.key_data(key_B).tolist()))
        return drop(x, rate, key_B)

    for module, drop in [(vit, dropout), (transformer, dropout), (transformer, drop_path)]:
        monkeypatch.setattr(module, drop.__name__, partial(recorded, drop))
    config = ModelConfig(name, patch_size=4, depth=3, width=16, num_heads=2, dropout=0.1, drop_path=0.1)
    model = registry.create(config, (8, 8, 3), 10, 16)
    key_B = jax.random.split(jax.random.key(0), 5)
    model.network(*model.init(jax.random.key(0)))(jnp.zeros((5, 8, 8, 3)), train=True, key_B=key_B)
    draws_per_block = 5 if name == "vit_mu" else 3
    assert len(set(seen)) == len(seen) == 5 * (1 + 3 * draws_per_block)


@pytest.mark.parametrize(
    ("module", "sizes", "config", "num_draws"),
    [
        (vgg, {"vgg16": ((1, 8), (1, 8))}, ModelConfig("vgg16", dropout=0.1), 2),
        (mixer, {"mixer_s": mixer.MixerConfig(8, 3, 4, 32)}, ModelConfig("mixer_s", patch_size=4, drop_path=0.1), 6),
        (
            convnext,
            {"convnext_t": convnext.ConvNeXtConfig((2, 1), (4, 8))},
            ModelConfig("convnext_t", drop_path=0.1),
            3,
        ),
    ],
    ids=["vgg", "mixer", "convnext"],
)
def test_every_draw_of_a_further_network_has_a_key_of_its_own(module, sizes, config, num_draws, monkeypatch):
    used = []
    name = "dropout" if config.dropout else "drop_path"

    def recorded(x, rate, key_B):
        used.append(jax.random.key_data(key_B))
        return x

    monkeypatch.setattr(module, name, recorded)
    for network, size in sizes.items():
        monkeypatch.setitem(module.LAYOUTS if module is vgg else module.SIZES, network, size)
    model = registry.create(config, (8, 8, 3), 10, 16)

    @jax.jit
    def draws(key_B):
        model.network(*model.init(jax.random.key(0)))(jnp.zeros((5, 8, 8, 3)), train=True, key_B=key_B)
        return jnp.concatenate(used)

    seen = draws(jax.random.split(jax.random.key(0), 5)).tolist()
    assert len(set(map(tuple, seen))) == len(seen) == 5 * num_draws


@pytest.mark.parametrize(
    ("name", "expected"), [("vit_mu", [0, 0.2]), ("deit3_s", [0.2, 0.2]), ("cait_s24", [0.2, 0.2])]
)
def test_which_blocks_are_dropped_is_as_published(name, expected, monkeypatch):
    seen = []
    monkeypatch.setattr(transformer, "drop_path", lambda x, rate, key_B: seen.append(float(rate)) or x)
    config = ModelConfig(name, patch_size=4, depth=2, width=16, num_heads=2, drop_path=0.2)
    model = registry.create(config, (4, 4, 3), 10, 16)
    key_B = jax.random.split(jax.random.key(0), 2)
    model.network(*model.init(jax.random.key(0)))(jnp.zeros((2, 4, 4, 3)), train=True, key_B=key_B)
    np.testing.assert_allclose(seen, np.repeat(expected, 2), rtol=1e-6)


def test_dropout_masks_do_not_depend_on_the_mesh(set_mesh):
    key_B = jax.random.split(jax.random.key(0), 8)
    x_BxNxF = jnp.ones((8, 3, 8))
    expected = np.asarray(dropout(x_BxNxF, 0.5, fold(key_B, 3)))
    set_mesh(replica=2, fsdp=2, tensor=2)
    x_BxNxF = jax.sharding.reshard(x_BxNxF, P(BATCH, None, TENSOR))
    key_B = jax.sharding.reshard(key_B, P(BATCH))
    got = dropout(x_BxNxF, 0.5, fold(key_B, 3))
    assert jax.typeof(got).sharding == jax.typeof(x_BxNxF).sharding
    np.testing.assert_array_equal(got, expected)


def test_gathering_kernels_again_does_not_multiply_again():
    layer = Dense(
        jax.random.key(0),
        "bd,df->bf",
        (8, 16),
        init=jax.nn.initializers.ones,
        spec=P(None, None),
        out_spec=P(None, None),
    )
    x_BxD = jax.ShapeDtypeStruct((4, 8), jnp.float32)

    def gradients(layer: Dense, x_BxD: jax.Array):
        return jax.grad(lambda layer, x_BxD: jnp.sum(jnp.sin(layer(x_BxD))), argnums=(0, 1))(layer, x_BxD)

    assert flops(gradients, layer, x_BxD) == 3 * flops(lambda layer, x_BxD: layer(x_BxD), layer, x_BxD)
