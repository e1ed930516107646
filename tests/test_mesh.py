"""The mesh, and how a spec is adapted to it."""

import itertools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from gnp_scale.config import ConfigError, MeshConfig
from gnp_scale.mesh import BATCH, FSDP, TENSOR, P, batch_spec, divisible_spec, gather, make_mesh, resolve


class Chip(NamedTuple):
    """What JAX asks of a TPU to place it in a mesh."""

    id: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5"
    core_on_chip: int = 0
    process_index: int = 0
    slice_index: int = 0


SHAPES = {
    "all to fsdp": (MeshConfig(), 8, MeshConfig(1, 8, 1)),
    "rest to fsdp": (MeshConfig(replica=2, tensor=2), 8, MeshConfig(2, 2, 2)),
    "all named": (MeshConfig(1, 4, 2), 8, MeshConfig(1, 4, 2)),
    "one device": (MeshConfig(), 1, MeshConfig(1, 1, 1)),
}


@pytest.mark.parametrize(("config", "num_devices", "resolved"), SHAPES.values(), ids=SHAPES.keys())
def test_one_axis_takes_what_the_others_leave(config, num_devices, resolved):
    assert resolve(config, num_devices) == resolved


@pytest.mark.parametrize("config", [MeshConfig(1, 4, 2), MeshConfig(tensor=2), MeshConfig(1, 8, 1)])
def test_a_mesh_that_does_not_fit_the_devices_is_refused_with_both_numbers(config):
    with pytest.raises(ConfigError, match=r"tensor \d does not fit 7 devices.*change --mesh"):
        resolve(config, 7)


def test_slices_that_no_axis_lies_across_are_refused():
    four_slices = [SimpleNamespace(slice_index=place // 2) for place in range(8)]
    with pytest.raises(ConfigError, match=r"replica 1 and fsdp 2 does not divide over 4 slices.*--mesh.replica"):
        make_mesh(MeshConfig(fsdp=2, tensor=4), four_slices)


@pytest.mark.parametrize("sizes", [(8, 8, 1), (32, 2, 1), (1, 8, 8), (4, 16, 1)], ids=str)
def test_an_axis_may_be_a_part_of_a_physical_one(sizes):
    """On 4 x 4 x 4 chips of a TPU v5p."""
    places = itertools.product(range(4), repeat=3)
    chips = [Chip(number, coords) for number, coords in enumerate(places)]
    mesh = make_mesh(MeshConfig(*sizes), chips)
    assert tuple(mesh.shape.values()) == sizes
    assert sorted(chip.id for chip in mesh.devices.flat) == list(range(64))


def test_two_axes_cannot_both_take_the_rest():
    with pytest.raises(ConfigError, match="at most one"):
        MeshConfig(replica=-1, fsdp=-1)


FITTED = {
    "as wanted": (P(FSDP, TENSOR), (8, 6), P(FSDP, TENSOR)),
    "to another dimension": (P(FSDP, None), (6, 8), P(None, FSDP)),
    "to the largest that it divides": (P(FSDP, None, None), (6, 8, 12), P(None, None, FSDP)),
    "beside the axis that the layer computes with": (P(FSDP, TENSOR), (6, 8), P(None, (TENSOR, FSDP))),
    "both together": (P((FSDP, TENSOR), None), (6, 8), P(TENSOR, FSDP)),
    "one of both": (P((FSDP, TENSOR)), (4,), P(FSDP)),
    "what is computed with does not move": (P(FSDP, TENSOR), (8, 3), P(FSDP, None)),
    "examples do not move": (P(BATCH, None), (6, 8), P(None, None)),
    "none takes it": (P(FSDP, None), (6, 3), P(None, None)),
}


@pytest.mark.parametrize(("spec", "shape", "fitted"), FITTED.values(), ids=FITTED)
def test_an_axis_that_does_not_divide_its_dimension_goes_to_another_or_is_left_out(spec, shape, fitted, set_mesh):
    set_mesh(fsdp=4, tensor=2)
    assert divisible_spec(spec, shape) == fitted


def test_without_a_mesh_nothing_is_sharded():
    assert divisible_spec(P(FSDP), (8,)) is None
    assert gather(jnp.ones(4)).shape == (4,)


def test_a_gathered_parameter_is_whole_over_fsdp_and_its_gradient_is_sharded_again(set_mesh):
    set_mesh(fsdp=4, tensor=2)
    w = jax.device_put(jnp.ones((8, 8)), P(FSDP, TENSOR))
    x = jax.device_put(jnp.ones((8, 8)), batch_spec(2))

    def loss(w):
        gathered = gather(w)
        assert jax.typeof(gathered).sharding.spec == P(None, TENSOR)
        return jnp.sum(x @ gathered)

    assert jax.typeof(jax.jit(jax.grad(loss))(w)) == jax.typeof(w)
