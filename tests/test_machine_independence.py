"""The penalised gradient depends on examples and groups, not on mesh, accumulation or number of processes.

Each cell of the matrix makes a whole training step, and compares u, the loss and the batch statistics with those of one
device.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np
import optax
import pytest
from launcher import run

from gnp_scale.config import Config, DataConfig, GnpConfig, MeshConfig, ModelConfig, OptimConfig, TrainConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import batch_spec, make_mesh, sharding
from gnp_scale.models import resnet
from gnp_scale.monitoring.metrics import read_metrics
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

EPS = np.finfo(np.float32).eps
# Every microbatch (a group, or a fourth of the batch) divides over 8 devices, and into whole groups of 8 with their own
# batch statistics, so the matrix has no missing cell.
NUM_EXAMPLES = 64
# A machine changes only the order of sums. A sum of n float32 terms changes by about sqrt(n) ulps in another order, and
# layers and the two passes add up a few of these; at most 21 were seen.
MAX_ULPS = 32

MODELS = {
    "vit": ModelConfig("vit_mu", patch_size=2, depth=2, dropout=0.1, drop_path=0.1),
    "resnet": ModelConfig("resnet18", stem="cifar", num_bn_groups=8),
}
MACHINES = {
    "1 device": (MeshConfig(1, 1, 1), TrainConfig()),
    "data 8": (MeshConfig(8, 1, 1), TrainConfig()),
    "fsdp 8, gathered for a pass": (MeshConfig(1, 8, 1), TrainConfig(gather="pass")),
    "fsdp 4 x tensor 2": (MeshConfig(1, 4, 2), TrainConfig()),
    "2 replicas x fsdp 4": (MeshConfig(2, 4, 1), TrainConfig()),
    "accumulation 4": (MeshConfig(1, 1, 1), TrainConfig(accumulate_steps=4)),
    "2 replicas x fsdp 4, accumulation 4": (MeshConfig(2, 4, 1), TrainConfig(accumulate_steps=4)),
}
# Machines of the network whose tokens are sharded: groups as microbatches, and as replicas.
MODELS_OF_TENSOR = {"vit, tokens sharded": dataclasses.replace(MODELS["vit"], sequence_parallel=True)}
MACHINES_OF_TENSOR = {
    "fsdp 4 x tensor 2": MACHINES["fsdp 4 x tensor 2"],
    "2 replicas x fsdp 2 x tensor 2": (MeshConfig(2, 2, 2), TrainConfig()),
}
NUM_GROUPS = (1, 2, 8)


@pytest.fixture(autouse=True)
def few_narrow_blocks(monkeypatch):
    """A program for 8 devices is slow to compile, and without optimizations a wide convolution is slow to run."""
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (resnet.BasicBlock, (1, 1)))
    monkeypatch.setattr(resnet, "WIDTH", 8)


@functools.cache
def step_on(machine: str, model: str, num_groups: int) -> dict[str, Any]:
    """u, losses and batch statistics of a step, as NumPy arrays."""
    mesh, train = (MACHINES | MACHINES_OF_TENSOR)[machine]
    config = Config(
        data=DataConfig(batch_size=NUM_EXAMPLES, eval_batch_size=NUM_EXAMPLES, crop_padding=1, mixup=0.2),
        model=(MODELS | MODELS_OF_TENSOR)[model],
        gnp=GnpConfig(r=0.1, alpha=0.8, perturb_groups=num_groups),
        # Its momentum after one step is bitwise u.
        optim=OptimConfig(name="sgd", momentum=0.9),
        mesh=mesh,
        train=train,
    )
    num_devices = math.prod(dataclasses.astuple(mesh))
    with jax.set_mesh(make_mesh(mesh, jax.devices()[:num_devices])):
        task = Task.of(config)
        state = task.init_state()
        state = dataclasses.replace(state, params=jax.tree.map_with_path(moved, state.params))
        state, metrics = make_train_step(task)(state, batch(), kind=StepKind.FULL)
        result = {
            "u": optax.tree.get(state.opt_state, "trace"),
            "batch_stats": state.batch_stats,
            "losses": {name: metrics[name] for name in ("train/loss", "train/loss_perturbed")},
        }
        return jax.tree.map(np.asarray, result)


def moved(path: Any, w: jax.Array) -> jax.Array:
    """`w` moved from its initial value: with a head of zeros there is no gradient."""
    rng = np.random.default_rng(list(jax.tree_util.keystr(path).encode()))
    return jax.device_put(np.asarray(w) + rng.normal(size=w.shape, scale=0.05).astype(np.float32), w.sharding)


def batch() -> dict[str, jax.Array]:
    # One of two million inputs of ReLUs may be within an ulp of 0, and become 0 on one machine only: seed 0 had one,
    # which moved u by 800 ulps. This seed has none.
    rng = np.random.default_rng(2)
    image = rng.integers(256, size=(NUM_EXAMPLES, 8, 8, 1), dtype=np.uint8)
    label = rng.integers(10, size=NUM_EXAMPLES, dtype=np.int32)
    return {
        name: jax.device_put(x, sharding(batch_spec(x.ndim))) for name, x in {"image": image, "label": label}.items()
    }


def ulps(got: Any, expected: Any) -> float:
    """The largest difference, in units in the last place of the largest entry of its leaf."""
    differences = jax.tree.map(lambda a, b: np.abs(a - b).max() / (EPS * np.abs(b).max()), got, expected)
    return np.max(jax.tree.leaves(differences))


# Each cell compiles a program of its own, in fifteen seconds or more. This one has batch statistics, both axes of
# examples, several groups and accumulation; `test_tokens_that_are_sharded_give_the_same_step` has the transformer. The
# others are compared by hand.
USUAL_CASES = {("resnet", 2, "2 replicas x fsdp 4, accumulation 4")}
CASES = [
    pytest.param(*case, marks=[] if case in USUAL_CASES else [pytest.mark.long])
    for case in itertools.product(MODELS, NUM_GROUPS, [name for name in MACHINES if name != "1 device"])
]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "num_groups", "machine"), CASES)
def test_the_same_groups_give_the_same_step_on_every_machine(model, num_groups, machine):
    got, expected = step_on(machine, model, num_groups), step_on("1 device", model, num_groups)
    assert ulps(got, expected) <= MAX_ULPS


@pytest.mark.long
@pytest.mark.parametrize("machine", MACHINES_OF_TENSOR)
@pytest.mark.parametrize("model", MODELS_OF_TENSOR)
def test_tokens_that_are_sharded_give_the_same_step(model, machine):
    """With the same masks of dropout and drop-path."""
    got, expected = step_on(machine, model, 2), step_on("1 device", "vit", 2)
    assert ulps(got, expected) <= MAX_ULPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "group_counts"),
    [("vit", (1, 2)), *(pytest.param(model, NUM_GROUPS, marks=pytest.mark.long) for model in MODELS)],
)
def test_other_groups_give_another_step(model, group_counts):
    """The difference is far larger than the tolerance, so the test can distinguish them."""
    one, *others = (step_on("1 device", model, num_groups)["u"] for num_groups in group_counts)
    assert all(ulps(other, one) > 1000 * MAX_ULPS for other in others)


@pytest.mark.long
def test_groups_are_the_same_in_two_processes_as_in_one(tmp_path):
    """Each process holds one replica, which is one group; only u passes between them."""
    flags = [
        *("--gnp.perturb-groups", "2", "--mesh.replica", "2", "--mesh.tensor", "2", "--model.depth", "1"),
        *("--model.patch-size", "4", "--model.width", "32", "--model.num-heads", "2", "--data.batch-size", "64"),
        *("--train.num-steps", "3", "--optim.warmup-steps", "0", "--train.log-every-steps", "1"),
    ]
    rows = []
    for num_processes in (1, 2):
        folder = tmp_path / str(num_processes)
        command = ("train", "configs/digits.py:quickstart", "--run-dir", str(folder / "run"), *flags)
        run(folder, *command, num_processes=num_processes, num_devices=4)
        rows.append(read_metrics(folder / "run"))
    names = [name for name in rows[0][0] if name.startswith(("train/", "gnp/"))]
    one, two = (np.array([[row[name] for name in names] for row in each]) for each in rows)
    # Sums between processes have another order: ulps, and a few more for the curvature, which is a small difference.
    np.testing.assert_allclose(two, one, rtol=1e-5)
