"""The update in one pass: the state of optax and the numbers of its chain, on any mesh."""

import dataclasses

import gnp_kernels
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp_scale.config import Config, ConfigError, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.gnp import LinearCombination, Penalized, sharded_ops
from gnp_scale.mesh import FSDP, TENSOR, P
from gnp_scale.training import optim
from gnp_scale.training.update import implementation, make_fused_update, make_optax_update

pytestmark = pytest.mark.usefixtures("unoptimized")

SHAPES = {"conv": {"kernel": (3, 3, 8, 16)}, "norm": {"scale": (16,)}, "head": {"kernel": (16, 10), "bias": (10,)}}
SPECS = {
    "conv": {"kernel": P(None, None, FSDP, TENSOR)},
    "norm": {"scale": P()},
    "head": {"kernel": P((FSDP, TENSOR), None), "bias": P()},
}
OPTIMIZERS = {
    "sgd": OptimConfig("sgd", momentum=0.0, nesterov=False),
    "momentum": OptimConfig("sgd", nesterov=False, clip_norm=0.5, weight_decay=1e-2),
    "nesterov": OptimConfig("sgd", warmup_steps=3, clip_norm=100.0, weight_decay=1e-2),
    "adamw": OptimConfig("adamw", learning_rate=1e-2, clip_norm=0.5, weight_decay=0.3, decay_norm_and_bias=True),
    "frozen": OptimConfig("adamw", weight_decay=0.3, decay_norm_and_bias=True, frozen=("conv/*", "head/bias")),
}


def trees(seed):
    rng = np.random.default_rng(seed)

    def leaf(shape, spec):
        return jax.device_put(rng.standard_normal(shape).astype(np.float32), optim_sharding(spec))

    return jax.tree.map(leaf, SHAPES, SPECS, is_leaf=lambda x: isinstance(x, tuple))


def optim_sharding(spec):
    return jax.sharding.NamedSharding(jax.sharding.get_mesh(), spec)


def penalized(c1, g1, c2, g2, norm):
    """The result of a step that an update needs."""
    return Penalized(0.0, None, LinearCombination(c1, g1, c2, g2), {"update_grad_norm": norm}, None, None)


def config_of(name, model=ModelConfig(), **train):  # noqa: B008
    return Config(model=model, optim=OPTIMIZERS[name], train=TrainConfig(num_steps=20, **train))


@pytest.mark.parametrize("axes", [(1, 1, 1), (1, 8, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_updates_are_those_of_the_chain(name, axes, set_mesh):
    """The optax state has the same structure, types, shardings and counts; values within 32 ulps of the largest."""
    set_mesh(*axes)
    config = config_of(name)
    chain = optim.make_optimizer(config.optim, config.train.num_steps)

    @jax.jit
    def with_optax(params, state, g1, g2):
        update, state = chain.update(jax.tree.map(lambda x, y: 0.2 * x + 0.8 * y, g1, g2), state, params)
        params = optax.apply_updates(params, update)
        return (
            params,
            state,
            {"optim/update_norm": optax.tree.norm(update), "optim/param_norm": optax.tree.norm(params)},
        )

    @jax.jit
    def fused_update(params, state, g1, g2):
        dots = sharded_ops.dots(g1, g2, implementation="xla")
        norm = jnp.sqrt(0.04 * dots.a_a + 0.32 * dots.a_b + 0.64 * dots.b_b)
        return make_fused_update(config, "xla")(params, state, penalized(0.2, g1, 0.8, g2, norm), jnp.bool(True))

    params = expected = trees(0)
    state = expected_state = chain.init(params)
    for step in range(5):
        g1, g2 = trees(2 * step + 1), trees(2 * step + 2)
        expected, expected_state, expected_norms = with_optax(expected, expected_state, g1, g2)
        # Two programs with collectives at once can starve each other on few cores.
        jax.block_until_ready(expected)
        params, state, copy, norms = jax.block_until_ready(fused_update(params, state, g1, g2))
    assert copy is None
    keeps_momentum = config.optim.name != "sgd" or config.optim.momentum > 0
    pairs = [(params, expected), (norms, expected_norms)]
    pairs += [(state, expected_state)] if keeps_momentum else []
    for got, wanted in pairs:
        assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, wanted)
        jax.tree.map(assert_close, got, wanted)
    assert optim.num_updates(state) == 5


def assert_close(x, y):
    assert np.max(np.abs(x - y)) <= 32 * 2.0**-23 * np.max(np.abs(y))


def test_the_copy_is_the_new_parameters_rounded(set_mesh):
    set_mesh(1, 4)
    config, params = config_of("nesterov", ModelConfig(dtype="bfloat16"), gradient_dtype="bfloat16"), trees(0)
    state = optim.make_optimizer(config.optim, 20).init(params)
    result, update = penalized(1.0, trees(1), 0.0, None, jnp.float32(1)), make_fused_update(config, "xla")
    new, _, copy, _ = jax.jit(lambda params: update(params, state, result, jnp.bool(True)))(params)
    jax.tree.map(lambda x, w: np.testing.assert_array_equal(x, w.astype(jnp.bfloat16)), copy, new)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_does_not_apply_leaves_all_as_it_was(name, set_mesh):
    """Bitwise, including the counts of the optimizer, although gradient and norm are NaN."""
    set_mesh(1, 4)
    config, params = config_of(name), trees(0)
    state = optim.make_optimizer(config.optim, 20).init(params)
    result = penalized(1.0, jax.tree.map(lambda x: x * jnp.nan, params), 0.0, None, jnp.float32(jnp.nan))
    update = make_fused_update(config, "xla")
    new, new_state, _, norms = jax.jit(lambda: update(params, state, result, jnp.bool(False)))()
    jax.tree.map(np.testing.assert_array_equal, (new, new_state), (params, state))
    assert norms["optim/update_norm"] == 0


@pytest.mark.parametrize("axes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_copies_count_once_in_sums_over_shards(axes, set_mesh, monkeypatch):
    """A replicated leaf is counted once, not once per device."""
    set_mesh(*axes)
    a, b = trees(0), trees(1)
    monkeypatch.setattr(gnp_kernels.dispatch, "choose", lambda *_: "xla")
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64) for tree in (a, b)]
    dots = jax.jit(lambda: sharded_ops.dots(a, b, implementation="pallas"))()
    np.testing.assert_allclose(dots, [x @ y for x, y in ((flat[0],) * 2, flat, (flat[1],) * 2)], rtol=1e-5)


LAYERS = {
    "single": {"embed": [0.125], "blocks/00": [0.25], "blocks/01": [0.5], "head": [1.0]},
    "stacked": {"embed": [0.125], "blocks/mlp": [0.25, 0.5], "head": [1.0]},
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_displacement_has_the_learning_rate_of_each_layer(name, set_mesh):
    """One step without momentum is -(learning rate of the layer) * (g1 + displacement) for the blend "decoupled"."""
    set_mesh(1, 2)
    rng, factors, config = np.random.default_rng(0), {}, config_of("sgd")
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, layer_decay=0.5))
    for path, of_blocks in LAYERS[name].items():
        *parents, last = path.split("/")
        place = factors.setdefault(parents[0], {}) if parents else factors
        place[last] = {"kernel": np.array(of_blocks, np.float32).reshape(-1, 1, 1)}
    params, g1, displacement = (
        jax.tree.map(lambda f: jnp.asarray(rng.standard_normal((len(f), 4, 6)), jnp.float32), factors) for _ in range(3)
    )
    optimizer = optim.make_optimizer(config.optim, config.train.num_steps)
    result = penalized(1.0, g1, 0.0, None, jnp.float32(1))._replace(displacement=displacement)
    update = make_optax_update(config, optimizer)
    new = jax.jit(lambda params: update(params, optimizer.init(params), result, jnp.bool(True)))(params).params
    rate = config.optim.learning_rate
    expected = jax.tree.map(lambda w, f, g, d: w - rate * f * (g + d), params, factors, g1, displacement)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), new, expected)


REFUSED = {
    "another optimizer": (Config(optim=OptimConfig("lion"), train=TrainConfig(kernels="triton")), "optim.name lion"),
    "decoupled": (Config(gnp=GnpConfig(blend="decoupled"), train=TrainConfig(kernels="pallas")), "decoupled"),
    "another machine": (Config(train=TrainConfig(kernels="triton")), "triton, which does not run on cpu"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_kernels_that_are_named_are_never_replaced(name, set_mesh):
    set_mesh()
    config, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        implementation(config)


@pytest.mark.parametrize("kernels", ["auto", "xla"])
def test_a_cpu_takes_plain_jax(kernels, set_mesh):
    set_mesh()
    assert implementation(Config(train=TrainConfig(kernels=kernels))) == "xla"


def test_gradients_are_not_narrower_than_the_computation():
    with pytest.raises(ConfigError, match=r"set model\.dtype bfloat16 as well"):
        Config(train=TrainConfig(gradient_dtype="bfloat16"))
    config = Config(model=ModelConfig(dtype="bfloat16"), train=TrainConfig(gradient_dtype="bfloat16"))
    assert dataclasses.replace(config, mesh=MeshConfig()).train.gradient_dtype == "bfloat16"
