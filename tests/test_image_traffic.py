"""The images that a step sends over the network, from compiled programs: none, or bytes for groups."""

from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from compiled import collectives

from gnp_scale.config import Config, DataConfig, GnpConfig, ModelConfig, TrainConfig
from gnp_scale.data.augment import finish, prepare
from gnp_scale.data.dataset import Dataset
from gnp_scale.data.sources import load
from gnp_scale.gnp import Gnp, StepKind, penalize
from gnp_scale.mesh import REPLICA, batch_spec, sharding
from gnp_scale.models import resnet
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step

pytestmark = pytest.mark.usefixtures("unoptimized")

NUM_EXAMPLES, SIZE = 64, 56
# Images are known by their number of entries: other arrays, of channels and tokens, have no multiple of 7 * 7 * 3.
NUM_PIXELS = SIZE * SIZE * 3
DATA = DataConfig("synthetic", batch_size=NUM_EXAMPLES, eval_batch_size=64, synthetic_image_size=SIZE)
MIXED = replace(DATA, crop_padding=1, mixup=0.2)
VIT = Config(data=MIXED, model=ModelConfig("vit_mu", patch_size=8, depth=1))
MESHES = {"fsdp 8": (1, 8, 1), "fsdp 4 x tensor 2": (1, 4, 2), "2 replicas x fsdp 4": (2, 4, 1)}


class Received(NamedTuple):
    """Number of images that each device receives in one step."""

    as_bytes: float
    as_floats: float


NOTHING, ONE_TO_MIX_WITH = Received(0, 0), Received(1, 0)


def received(text: str) -> Received:
    num_images = {"u8": 0.0, "f32": 0.0}
    for dtype, num_entries in (array for collective in collectives(text) for array in collective.arrays):
        if num_entries % NUM_PIXELS == 0:
            num_images[dtype] += num_entries / NUM_PIXELS
    return Received(num_images["u8"], num_images["f32"])


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load(DATA)


def by_passes(gnp: Gnp, num_accumulated: int, data: DataConfig, dataset: Dataset, **options) -> Received:
    """Of the passes alone, with a model of one weight for each channel, on the current mesh."""

    def loss_fn(weight_C, examples):
        image_BxHxWxC = finish(examples, data, dataset)["image"]
        return jnp.mean(jnp.square(jnp.sum(image_BxHxWxC * weight_C[None, None, None], axis=(1, 2, 3))))

    @jax.jit
    def step(weight_C, batch):
        fn = penalize(loss_fn, gnp, num_accumulated=num_accumulated, **options)
        return fn(weight_C, prepare(batch, data)).grad

    keys = jax.eval_shape(partial(jax.random.split, num=NUM_EXAMPLES), jax.random.key(0))
    shapes = {"image": ((NUM_EXAMPLES, SIZE, SIZE, 3), jnp.uint8), "label": ((NUM_EXAMPLES,), jnp.int32)}
    shapes["key"] = (keys.shape, keys.dtype)
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding(batch_spec(len(shape))))
        for name, (shape, dtype) in shapes.items()
    }
    return received(step.lower(jnp.ones(3), batch).compile().as_text())


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize("num_accumulated", [1, pytest.param(2, marks=pytest.mark.long), 4])
def test_an_accumulation_moves_no_image(mesh, num_accumulated, dataset, set_mesh):
    set_mesh(*mesh)
    assert by_passes(Gnp(alpha=0.8), num_accumulated, DATA, dataset) == NOTHING
    assert by_passes(Gnp(alpha=0.8), num_accumulated, MIXED, dataset) == ONE_TO_MIX_WITH


@pytest.mark.parametrize("mesh", MESHES.values(), ids=MESHES)
@pytest.mark.parametrize(
    ("gnp", "num_accumulated"),
    [
        (Gnp(alpha=0.8, perturb_groups=2), 1),
        (Gnp(alpha=0.8, perturb_groups=4), 2),
        (Gnp(alpha=0.8, ascent_fraction=0.5), 2),
        (Gnp(alpha=0.8, perturb_groups=2, ascent_fraction=0.5), 4),
    ],
    ids=lambda value: f"{value.perturb_groups} groups of {value.ascent_fraction}" if isinstance(value, Gnp) else value,
)
def test_groups_and_their_first_parts_move_bytes_only(mesh, gnp, num_accumulated, dataset, set_mesh):
    set_mesh(*mesh)
    num_own = NUM_EXAMPLES // (mesh[0] * mesh[1])
    num_cuts = (gnp.perturb_groups > 1) + (gnp.ascent_fraction < 1)
    got = by_passes(gnp, num_accumulated, DATA, dataset)
    # The compiler moves an image in two hops, in an all-to-all and a permutation.
    assert got.as_floats == 0
    assert 0 < got.as_bytes <= 2 * num_cuts * num_own


def test_a_group_to_each_replica_moves_no_image(dataset, set_mesh):
    set_mesh(replica=2, fsdp=4)
    gnp = Gnp(alpha=0.8, perturb_groups=2)
    assert by_passes(gnp, 4, MIXED, dataset, group_axis=REPLICA) == ONE_TO_MIX_WITH


def test_examples_that_belong_together_stay_where_they_are_if_each_device_holds_whole_parts_of_them(dataset, set_mesh):
    set_mesh(fsdp=8)
    assert by_passes(Gnp(alpha=0.8), 2, DATA, dataset, num_together=4) == NOTHING
    moved = by_passes(Gnp(alpha=0.8), 2, DATA, dataset, num_together=32)
    assert moved.as_bytes > 0
    assert moved.as_floats == 0


STEPS = {
    "plain": (VIT, "fsdp 8", StepKind.PLAIN),
    "accumulated": (replace(VIT, train=TrainConfig(accumulate_steps=4)), "fsdp 4 x tensor 2", StepKind.FULL),
    "batch statistics": (
        Config(
            data=MIXED,
            model=ModelConfig("resnet18", stem="cifar", num_bn_groups=16),
            train=TrainConfig(accumulate_steps=2),
        ),
        "fsdp 8",
        StepKind.FULL,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("config", "mesh", "kind"), STEPS.values(), ids=STEPS)
def test_a_training_step_moves_one_image_to_be_mixed(config, mesh, kind, monkeypatch, set_mesh):
    monkeypatch.setitem(resnet.LAYOUTS, "resnet18", (resnet.BasicBlock, (1,)))
    set_mesh(*MESHES[mesh])
    assert by_step(config, kind) == ONE_TO_MIX_WITH


@pytest.mark.slow
def test_a_training_step_with_groups_moves_bytes_only(set_mesh):
    """All at once: mixing, groups on the replicas, the first half of each, and accumulation."""
    set_mesh(replica=2, fsdp=4)
    gnp = GnpConfig(perturb_groups=2, ascent_fraction=0.5)
    got = by_step(replace(VIT, gnp=gnp, train=TrainConfig(accumulate_steps=4)), StepKind.FULL)
    assert got.as_floats == 0
    # Each image and the one that it is mixed with, in two hops.
    assert 0 < got.as_bytes <= 1 + 2 * 2 * NUM_EXAMPLES // 8


def by_step(config: Config, kind: StepKind) -> Received:
    task = Task.of(config)
    lowered = make_train_step(task).lower(task.abstract_state(), task.abstract_batch(), kind=kind)
    return received(lowered.compile().as_text())
