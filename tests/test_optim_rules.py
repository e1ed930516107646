"""Optimizers and options that know the layers: Adafactor, Muon, clipping of units, decay by layer, frozen parameters.

The oracles are NumPy in float64 on the parameters of small networks.
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gnp_scale.config import Config, ConfigError, DataConfig, GnpConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.data.pipeline import train_batches
from gnp_scale.gnp import StepKind
from gnp_scale.models import registry
from gnp_scale.training.leaves import frozen_mask, kernel_axes, layer_factors
from gnp_scale.training.optim import make_optimizer
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step
from gnp_scale.training.update import implementation

pytestmark = pytest.mark.usefixtures("unoptimized")
NUM_STEPS = 3
VIT = ModelConfig("vit_mu", patch_size=8, depth=3, width=64, num_heads=2)


def params_of(model, size=16):
    network = registry.create(model, (size, size, 3), 10, 8)
    return jax.jit(network.init)(jax.random.key(0))[0]


def like(params, seed):
    """Normal numbers in the place of the parameters, on the same devices."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: jax.device_put(rng.standard_normal(w.shape).astype("f"), w.sharding), params)


def flat(tree):
    return {"/".join(key.key for key in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)}


def run(config, params):
    """Parameters after some steps, in float64."""
    optimizer = make_optimizer(config, NUM_STEPS)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.jit(optimizer.init)(params)
    types = jax.tree.map(jax.typeof, (params, state))
    for number in range(NUM_STEPS):
        params, state = step(params, state, like(params, number + 1))
        assert jax.tree.map(jax.typeof, (params, state)) == types, "a step keeps every type and sharding"
    return {path: leaf.astype(np.float64) for path, leaf in flat(params).items()}


CONSTANT = OptimConfig(learning_rate=0.1, schedule="constant")
ADAFACTOR = replace(CONSTANT, name="adafactor", b1=0.9, b2=0.999, weight_decay=0.1)
MUON = replace(CONSTANT, name="muon", momentum=0.95, weight_decay=0.1)


def adafactor_float64(w, gradients, is_decayed):
    """arXiv 1804.04235, algorithm 4, without clipping; factored if two axes have 32 numbers or more."""
    order = np.argsort(w.shape, kind="stable")
    is_factored = w.ndim > 1 and w.shape[order[-2]] >= 32
    row, column, whole, momentum = 0.0, 0.0, 0.0, 0.0
    for t, g in enumerate(gradients, start=1):
        beta = min(0.999, 1 - t**-0.8)
        square = g**2 + 1e-30
        if is_factored:
            small, large = order[-2:]
            row = beta * row + (1 - beta) * square.mean(axis=large, keepdims=True)
            column = beta * column + (1 - beta) * square.mean(axis=small, keepdims=True)
            second = row * column / row.mean(axis=small, keepdims=True)
        else:
            second = whole = beta * whole + (1 - beta) * square
        momentum = 0.9 * momentum + 0.1 * g / np.sqrt(second)
        w = w - 0.1 * (momentum + 0.1 * w * is_decayed)
    return w


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2)])
def test_adafactor_follows_its_paper_on_every_mesh(shape, set_mesh):
    set_mesh(*shape)
    params = params_of(VIT)
    gradients = [flat(like(params, number + 1)) for number in range(NUM_STEPS)]
    found = run(ADAFACTOR, params)
    for path, w in flat(params).items():
        expected = adafactor_float64(w.astype(float), [g[path].astype(float) for g in gradients], "kernel" in path)
        np.testing.assert_allclose(found[path], expected, rtol=1e-4, atol=1e-5, err_msg=path)


def orthogonal_float64(matrix):
    """Five steps of Newton and Schulz, of the published polynomial."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def muon_float64(w, gradients, matrices):
    """`matrices` turns an array into a list of its matrices, and back."""
    to_matrices, back = matrices
    momentum = 0.0
    for t, g in enumerate(gradients, start=1):
        momentum = 0.95 * momentum + 0.05 * g
        ahead = 0.95 * momentum / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
        steps = [0.2 * np.sqrt(max(m.shape)) * orthogonal_float64(m) for m in to_matrices(ahead)]
        w = w - 0.1 * (back(steps, w.shape) + 0.1 * w)
    return w


WHOLE = (lambda x: [x.reshape(-1, x.shape[-1])], lambda steps, shape: steps[0].reshape(shape))
QKV = (
    lambda x: [x[:, n].reshape(len(x), -1) for n in range(3)],
    lambda steps, shape: np.stack([step.reshape(shape[0], *shape[2:]) for step in steps], axis=1),
)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 4, 2)])
def test_muon_makes_each_matrix_of_a_hidden_layer_orthogonal_on_every_mesh(shape, set_mesh):
    set_mesh(*shape)
    params = params_of(VIT)
    gradients = [flat(like(params, number + 1)) for number in range(NUM_STEPS)]
    found = run(MUON, params)
    adam = run(replace(MUON, name="adamw"), params)
    for path, w in flat(params).items():
        if path.startswith("blocks/") and path.endswith("kernel"):
            matrices = QKV if "attention/in_proj" in path else WHOLE
            expected = muon_float64(w.astype(float), [g[path].astype(float) for g in gradients], matrices)
            np.testing.assert_allclose(found[path], expected, atol=2e-3, err_msg=path)
        else:
            np.testing.assert_array_equal(found[path], adam[path], err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        pytest.param(ADAFACTOR, marks=pytest.mark.long),
        MUON,
        replace(CONSTANT, name="adamw", agc=0.01, layer_decay=0.5),
    ],
)
def test_stacked_blocks_get_the_steps_of_single_ones(config, set_mesh):
    """Adafactor's too, as long as the number of blocks is not one of the two largest sizes, whose axes it factors."""
    set_mesh(1, 2, 1)
    single = params_of(VIT)
    stacked = dict(params_of(replace(VIT, scan_layers=True)))
    blocks = list(single["blocks"].values())
    sharding = jax.tree.map(lambda w: w.sharding, stacked["blocks"])
    values = jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *blocks)
    stacked |= {"blocks": jax.device_put(values, sharding)}

    def steps(params, gradient):
        optimizer = make_optimizer(config, NUM_STEPS)
        return jax.jit(optimizer.update)(gradient, jax.jit(optimizer.init)(params), params)[0]

    gradient = like(single, 1)
    of_blocks = [flat(block) for block in gradient["blocks"].values()]
    stacked_gradient = dict(gradient) | {
        "blocks": jax.tree.map_with_path(
            lambda path, s: jax.device_put(np.stack([b["/".join(k.key for k in path)] for b in of_blocks]), s), sharding
        )
    }
    found, expected = steps(stacked, stacked_gradient), steps(single, gradient)
    for number, block in enumerate(expected["blocks"].values()):
        for path, leaf in flat(block).items():
            np.testing.assert_allclose(flat(found["blocks"])[path][number], leaf, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.slow
def test_units_are_clipped_by_what_one_output_sums_over(set_mesh):
    set_mesh(1, 2, 2)
    params, share = params_of(VIT), 0.01
    optimizer = make_optimizer(replace(CONSTANT, momentum=0.0, nesterov=False, learning_rate=1.0, agc=share), NUM_STEPS)
    gradient = jax.tree.map(lambda g: 0.01 * g, like(params, 1))
    found = flat(jax.jit(optimizer.update)(gradient, jax.jit(optimizer.init)(params), params)[0])
    num_clipped = 0
    for path, g in flat(gradient).items():
        w, step = flat(params)[path], -found[path]
        axes = tuple(range(g.ndim))
        if path.endswith("kernel"):
            axes = (0,) if "in_proj" in path else axes[:-1]
        largest = share * np.maximum(np.sqrt(np.sum(w.astype(float) ** 2, axes, keepdims=True)), 1e-3)
        norm = np.sqrt(np.sum(g.astype(float) ** 2, axes, keepdims=True))
        expected = g if path.startswith("head/") else g * np.minimum(1, largest / norm)
        num_clipped += np.sum(expected != g)
        np.testing.assert_allclose(step, expected, rtol=1e-5, err_msg=path)
    assert num_clipped > 0


@pytest.mark.parametrize(
    ("path", "num_dims", "inputs", "outputs"),
    [
        ("blocks/00/attention/in_proj/kernel", 4, (0,), (2, 3)),
        ("blocks/attention/in_proj/kernel", 5, (1,), (3, 4)),
        ("blocks/00/attention/out_proj/kernel", 3, (0, 1), (2,)),
        ("blocks/attention/out_proj/kernel", 4, (1, 2), (3,)),
        ("class_blocks/0/attention/query/kernel", 3, (0,), (1, 2)),
        ("attention_pool/query/kernel", 3, (0,), (1, 2)),
        ("attention_pool/key_value/kernel", 4, (0,), (2, 3)),
        ("attention_pool/out_proj/kernel", 3, (0, 1), (2,)),
        ("blocks/00/mlp/in_proj/kernel", 2, (0,), (1,)),
        ("blocks/0_00/conv_1/kernel", 4, (0, 1, 2), (3,)),
        ("stages/1/02/in_proj/kernel", 2, (0,), (1,)),
        ("embed/kernel", 4, (0, 1, 2), (3,)),
    ],
)
def test_axes_of_kernels(path, num_dims, inputs, outputs):
    assert kernel_axes(path.split("/"), num_dims) == (inputs, outputs)


NETWORKS = {
    "vit": (VIT, 16, {"embed": 0, "position": 0, "blocks/00": 1, "blocks/02": 3, "norm": 4, "head": 4}),
    "mixer": (ModelConfig("mixer_s", patch_size=16), 32, {"embed": 0, "blocks/00": 1, "blocks/07": 8, "head": 9}),
    "swin": (
        ModelConfig("swin_t"),
        32,
        {"patches": 0, "blocks/0_01": 2, "merging/1": 3, "blocks/3_01": 12, "norm": 13},
    ),
    "convnext": (
        ModelConfig("convnext_t"),
        32,
        {"conv": 0, "norm": 0, "stages/0/02": 3, "downsamplings/1": 4, "stages/3/02": 18, "norm_head": 19, "head": 19},
    ),
    "cait": (
        ModelConfig("cait_xxs24", patch_size=16),
        32,
        {"embed": 0, "blocks/23": 24, "class_blocks/1": 26, "norm": 27, "head": 27},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_learning_rate_falls_by_a_factor_from_block_to_block(name, set_mesh):
    set_mesh()
    model, size, numbers = NETWORKS[name]
    shapes = jax.eval_shape(lambda: params_of(model, size))
    factors = jax.tree.map(float, layer_factors(shapes, 0.5))
    found = {"/".join(key.key for key in path): factor for path, factor in jax.tree.leaves_with_path(factors)}
    last = numbers["head"] if "head" in numbers else numbers["norm"]
    for start, number in numbers.items():
        values = {factor for path, factor in found.items() if path == start or path.startswith(f"{start}/")}
        assert values == {0.5 ** (last - number)}, start


@pytest.mark.parametrize("name", ["resnet18", "vgg16"])
def test_other_networks_have_no_order_of_layers(name, set_mesh):
    set_mesh()
    with pytest.raises(ConfigError, match=r"optim\.layer_decay is 0\.5: it is for transformers"):
        layer_factors(jax.eval_shape(lambda: params_of(ModelConfig(name), 32)), 0.5)


def test_patterns_of_frozen_parameters_name_some_and_not_all(set_mesh):
    set_mesh()
    shapes = jax.eval_shape(lambda: params_of(VIT))
    mask = frozen_mask(shapes, OptimConfig(frozen=("embed/*", "blocks/0[01]/*")))
    frozen = {"/".join(key.key for key in path) for path, is_frozen in jax.tree.leaves_with_path(mask) if is_frozen}
    assert {path.split("/")[0] for path in frozen} == {"embed", "blocks"}
    assert not any(path.startswith("blocks/02") for path in frozen)
    for patterns, part in {("emed/*",): "names no parameter", ("*",): "leaves nothing to train"}.items():
        with pytest.raises(ConfigError, match=part):
            frozen_mask(shapes, OptimConfig(frozen=patterns))


@pytest.mark.slow
def test_frozen_parameters_are_not_trained_perturbed_or_counted(set_mesh):
    """With an adaptive radius, weight decay, L2 in the loss and a clip, which all see every trained parameter."""
    set_mesh(1, 2, 1)
    config = Config(
        data=DataConfig(batch_size=16),
        model=replace(VIT, patch_size=4),
        gnp=GnpConfig(r=0.1, metric="adaptive"),
        optim=OptimConfig(
            name="adamw", weight_decay=0.1, l2_in_loss=0.1, clip_norm=0.01, frozen=("embed/*", "blocks/00/*")
        ),
        train=TrainConfig(num_steps=5, loss="sigmoid", kernels="xla", ema_decay=0.9),
    )
    task = Task.of(config)
    state = task.init_state()
    before = flat(state.params)
    step = make_train_step(task)
    # The head starts at zero, so the first step moves only the head.
    for batch in train_batches(task.dataset, config.data, 0, 0, 2):
        state, metrics = step(state, batch, kind=StepKind.FULL)
    average = flat(state.ema[0])
    for path, w in flat(state.params).items():
        is_frozen = path.startswith(("embed/", "blocks/00/"))
        assert (w == before[path]).all() == is_frozen, path
        assert (average[path] == w).all() == is_frozen, path
    assert float(metrics["gnp/grad_norm"]) > 0
    moments = flat(optax.tree.get(state.opt_state, "mu"))
    assert moments.keys() == {path for path in before if not path.startswith(("embed/", "blocks/00/"))}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["sgd", "adamw", "muon", *(pytest.param(n, marks=pytest.mark.long) for n in ("lamb", "lars", "lion", "adafactor"))],
)
def test_first_moments_may_be_bfloat16_and_steps_stay_near(name, set_mesh):
    set_mesh(1, 2, 1)
    config = replace(CONSTANT, name=name, learning_rate=0.01)
    params = params_of(VIT)
    narrow, wide = (run(replace(config, moment_dtype=dtype), params) for dtype in ("bfloat16", "float32"))
    types = {x.dtype for x in jax.tree.leaves(make_optimizer(replace(config, moment_dtype="bfloat16"), 3).init(params))}
    assert jnp.dtype("bfloat16") in types
    moved, same = 0.0, 0.0
    for path, w in flat(params).items():
        moved += np.sum((wide[path] - w) ** 2)
        same += np.sum((narrow[path] - wide[path]) ** 2)
    assert 0 < np.sqrt(same / moved) < 0.05


@pytest.mark.parametrize(
    "change",
    [
        {"moment_dtype": "bfloat16"},
        {"agc": 0.01},
        {"layer_decay": 0.5},
        {"name": "muon"},
        {"name": "adafactor"},
        {"name": "custom", "function": "a.py:b"},
    ],
)
def test_kernels_refuse_what_they_do_not_compute(change, set_mesh, monkeypatch):
    """So nothing of the configuration is silently left out on an accelerator."""
    set_mesh()
    monkeypatch.setattr("gnp_scale.training.update.platform", lambda: "tpu")
    config = Config(optim=OptimConfig(name="adamw"), train=TrainConfig(kernels="pallas"))
    assert implementation(config) == "pallas"
    (value, *_) = change.values()
    with pytest.raises(ConfigError, match=f"cannot do .*{value}"):
        implementation(replace(config, optim=replace(config.optim, **change)))
    automatic = replace(config, optim=replace(config.optim, **change), train=TrainConfig())
    assert implementation(automatic) == "xla"
