"""Any optax transformation is a base optimizer, by a function in a file of the user."""

import runpy
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp_scale.config import Config, ConfigError, DataConfig, ModelConfig, OptimConfig
from gnp_scale.mesh import FSDP, TENSOR, P
from gnp_scale.training.optim import learning_rate, make_optimizer, num_updates
from gnp_scale.training.penalty import make_gnp
from gnp_scale.training.setup import Task

FILE = """
import jax
import optax

def adopt(learning_rate):
    return optax.contrib.adopt(learning_rate)

def muon(learning_rate):
    return optax.contrib.muon(learning_rate)

def prodigy(learning_rate):
    return optax.contrib.prodigy(learning_rate)

def mechanize(learning_rate):
    return optax.contrib.mechanize(optax.sgd(learning_rate))

def galore(learning_rate):
    return optax.contrib.galore(learning_rate, rank=2)

def noisy(learning_rate):
    return optax.noisy_sgd(learning_rate, key=jax.random.key(0))

def sm3(learning_rate):
    return optax.sm3(0.1)

def lbfgs(learning_rate):
    return optax.lbfgs()

def schedule_free(learning_rate):
    return optax.chain(optax.clip(1.0), optax.contrib.schedule_free_sgd(0.1))

def decays(learning_rate):
    return optax.adamw(learning_rate, weight_decay=0.5)

def nothing(learning_rate):
    return learning_rate

def fails(learning_rate):
    raise ValueError("no such thing")
"""
PARAMS = {"embed": {"kernel": jnp.ones((2, 2))}, "head": {"kernel": jnp.full((2, 2), 2.0)}}
NUM_STEPS = 10


@pytest.fixture
def custom(tmp_path):
    """The section for a function of `FILE`."""
    (tmp_path / "mine.py").write_text(FILE)
    return lambda name, **values: OptimConfig("custom", f"{tmp_path}/mine.py:{name}", warmup_steps=2, **values)


def follow(optimizer, params):
    """The parameters after each of three updates with gradients of 1, 2 and 3, and the last state."""
    state, path = optimizer.init(params), []
    for number in (1.0, 2.0, 3.0):
        updates, state = optimizer.update(jax.tree.map(lambda w, x=number: jnp.full_like(w, x), params), state, params)
        params = optax.apply_updates(params, updates)
        path.append(params)
    return path, state


def test_it_moves_as_the_transformation_alone_with_the_schedule_of_the_run(custom):
    """ADOPT's first update only sets its second moment: a count of its own would be one behind."""
    config = custom("adopt", clip_norm=1e6)
    path, state = follow(make_optimizer(config, NUM_STEPS), PARAMS)
    expected, _ = follow(optax.contrib.adopt(learning_rate(config, NUM_STEPS)), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, path, expected)
    assert num_updates(state) == 3
    assert not np.array_equal(path[0]["head"]["kernel"], path[-1]["head"]["kernel"])


def test_frozen_parameters_do_not_move_whatever_it_decays(custom):
    path, _ = follow(make_optimizer(custom("decays", frozen=("embed/*",)), NUM_STEPS), PARAMS)
    np.testing.assert_array_equal(path[-1]["embed"]["kernel"], PARAMS["embed"]["kernel"])
    assert (path[-1]["head"]["kernel"] < 2).all()


def test_its_state_is_sharded_like_the_parameters(custom, set_mesh):
    set_mesh(1, 4, 2)
    data = DataConfig("synthetic", batch_size=8, eval_batch_size=8, synthetic_num_examples=8)
    model = ModelConfig("vit_ti", patch_size=8, depth=1, num_heads=4, width=128)
    state = Task.of(Config(data=data, model=model, optim=custom("adopt"))).abstract_state()
    moments = optax.tree.get(state.opt_state, "mu")
    specs = jax.tree.map(lambda w, m: w.sharding.spec == m.sharding.spec, state.params, moments)
    assert all(jax.tree.leaves(specs))


@pytest.mark.parametrize("name", ["adopt", "muon", "prodigy", "mechanize", "galore", "noisy", "sm3"])
def test_any_transformation_moves_sharded_parameters_as_it_moves_those_of_one_device(name, custom, set_mesh):
    """Those that factor, flatten or orthogonalise parameters mix their sharded axes."""
    config = custom(name)
    alone = runpy.run_path(config.function.partition(":")[0])[name](learning_rate(config, NUM_STEPS))
    expected, _ = three_updates(alone, lambda w: w)
    set_mesh(2, 2, 2)
    specs = {1: P(FSDP), 2: P(FSDP, TENSOR)}
    found, state = three_updates(make_optimizer(config, NUM_STEPS), lambda w: jax.device_put(w, specs[w.ndim]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), found, expected)
    assert all(x.size and x.dtype in (bool, "int32", "uint32", "float32") for x in jax.tree.leaves(state))


def three_updates(optimizer, place):
    """The parameters and the state after three updates with one gradient, which `place` puts on devices."""
    random = np.random.default_rng(0)
    shapes = {"embed": {"kernel": (8, 4)}, "head": {"kernel": (4, 8), "bias": (8,)}}
    params, grad = (
        jax.tree.map(lambda shape: place(random.standard_normal(shape, np.float32)), shapes, is_leaf=is_shape)
        for _ in range(2)
    )
    state = jax.jit(optimizer.init)(params)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(grad, state, params)
        params = optax.apply_updates(params, updates)
    return jax.device_get(params), state


def is_shape(tree):
    return isinstance(tree, tuple)


WRONG = {
    "no function": (
        lambda custom: OptimConfig("custom"),
        "optim.function is None with optim.name custom",
    ),
    "no use": (lambda custom: OptimConfig("sgd", "a.py:b"), "optim.function is a.py:b with optim.name sgd"),
    "decay outside": (
        lambda custom: custom("adopt", weight_decay=0.1),
        "optim.weight_decay is 0.1 and",
    ),
    "not a name": (lambda custom: make_optimizer(OptimConfig("custom", "mine.py"), 9), "optimizer 'mine.py' names no"),
    "no file": (lambda custom: make_optimizer(OptimConfig("custom", "no.py:f"), 9), "optimizer file 'no.py' does not"),
    "another name": (lambda custom: make_optimizer(custom("adapt"), 9), "has no function 'adapt': did you mean adopt?"),
    "no transformation": (lambda custom: make_optimizer(custom("nothing"), 9), "it must return an optax.Gradient"),
    "more than a gradient": (
        lambda custom: follow(make_optimizer(custom("lbfgs"), 9), PARAMS),
        "mine.py:lbfgs fails: TypeError: ",
    ),
    "other parameters": (
        lambda custom: make_optimizer(custom("schedule_free"), 9).init(PARAMS),
        "keeps other parameters than the trained ones to evaluate (schedule_free)",
    ),
    "an error": (lambda custom: make_optimizer(custom("fails"), 9), "fails in line 39: ValueError: no such thing"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(name, custom):
    make, message = WRONG[name]
    with pytest.raises(ConfigError) as error:
        make(custom)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_momentum_of_a_function_is_not_guessed(custom):
    config = Config(optim=custom("adopt"))
    config = replace(config, gnp=replace(config.gnp, direction="momentum", alpha=1.0))
    with pytest.raises(ConfigError, match=r"needs a momentum of all gradients: optim\.name is custom"):
        make_gnp(config)
