"""The peers of `make bench-peers` are the same networks: they compute the same numbers in another way."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from benchmarks.peers import forward, linen
from benchmarks.peers.steps import make_config, peer_state, peer_step
from benchmarks.tasks import KINDS
from gnp_scale.config import MeshConfig, ModelConfig
from gnp_scale.mesh import make_mesh
from gnp_scale.models import resnet
from gnp_scale.monitoring.flops import flops
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

MODELS = {"vit": ModelConfig("vit_mu", patch_size=8, depth=2), "resnet": ModelConfig("resnet50")}
EPS = np.finfo(np.float32).eps
KEY_BIAS = (jax.tree_util.DictKey("key"), jax.tree_util.DictKey("bias"))

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture
def task(request, monkeypatch):
    monkeypatch.setitem(resnet.LAYOUTS, "resnet50", (resnet.Bottleneck, (1, 2)))
    # Flax's layers promote ranks.
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])), jax.numpy_rank_promotion("allow"):
        yield Task.of(make_config(MODELS[request.param], batch_size=8, image_size=32, num_classes=10))


def moved(task):
    """The initial state with all parameters moved, because zeros hide the layers before them."""
    state = task.init_state()
    leaves, structure = jax.tree.flatten(state.params)
    rng = np.random.default_rng(0)
    leaves = [jax.device_put(np.asarray(w) + 0.02 * rng.normal(size=w.shape).astype("f"), w.sharding) for w in leaves]
    return dataclasses.replace(state, params=jax.tree.unflatten(structure, leaves))


@pytest.mark.parametrize("task", MODELS, indirect=True)
def test_a_forward_pass_has_the_same_parameters_and_flops(task):
    state = task.abstract_state()
    variables = jax.eval_shape(lambda: linen.variables_like(*task.model.init(jax.random.key(0))))
    network = linen.create(task.config.model, 10)
    image = jax.ShapeDtypeStruct((8, 32, 32, 3), np.float32)
    own = jax.eval_shape(lambda key, x: network.init(key, x, train=True), jax.random.key(0), image)
    assert jax.tree.map(lambda x: x.shape, own) == jax.tree.map(lambda x: x.shape, variables)
    theirs = flops(lambda variables, x: network.apply(variables, x, train=False), own, image)
    ours = flops(lambda s, x: task.model.network(s.params, s.batch_stats)(x, train=False), state, image)
    assert ours == theirs


@pytest.mark.slow
@pytest.mark.parametrize("task", ["vit", pytest.param("resnet", marks=pytest.mark.long)], indirect=True)
@pytest.mark.parametrize("kind", [pytest.param("plain", marks=pytest.mark.long), "penalised"])
def test_an_update_gives_the_same_numbers(task, kind):
    state = moved(task)
    rng = np.random.default_rng(1)
    batch = {"image": rng.integers(256, size=(8, 32, 32, 3), dtype=np.uint8), "label": np.arange(8, dtype=np.int32)}
    theirs, metrics = peer_step(task, kind)(jax.device_get(peer_state(task, state)), batch)
    sharded = {name: jax.device_put(batch[name], x.sharding) for name, x in task.abstract_batch().items()}
    new, own_metrics = make_train_step(task)(state, sharded, kind=KINDS[kind])
    np.testing.assert_allclose(own_metrics["train/loss"], metrics["loss"], rtol=16 * EPS)
    expected = theirs[0]
    got = linen.variables_like(new.params, new.batch_stats)
    for name, difference in jax.tree.leaves_with_path(jax.tree.map(lambda a, b: np.abs(a - b).max(), got, expected)):
        # The bias of the keys moves all logits of a query equally: its gradient is rounding, which AdamW normalises.
        assert difference < 1e-5 or name[-2:] == KEY_BIAS, name


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.long if name.startswith("pyramidnet") else []) for name in forward.PLAIN],
)
def test_a_plain_network_has_the_same_parameters_and_flops(name):
    """So that its cycles are those of the same work."""
    size = forward.PLAIN[name][1]
    image = jax.ShapeDtypeStruct((forward.BATCH_SIZE, size, size, 3), np.float32)
    with jax.set_mesh(make_mesh(MeshConfig(), jax.devices()[:1])), jax.numpy_rank_promotion("allow"):
        own, state = forward.own_pass(ModelConfig(name), size, 10)
        theirs, variables = forward.plain_pass(ModelConfig(name), size, 10)
        num_own, num_theirs = (sum(math.prod(x.shape) for x in jax.tree.leaves(tree)) for tree in (state, variables))
        assert num_own == num_theirs
        # Swin looks up its position biases by a matrix product.
        assert flops(own, *state, image) == pytest.approx(flops(theirs, variables, image), rel=3e-5)
