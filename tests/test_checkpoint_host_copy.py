"""The host copy of a state contains each shard once, on any mesh."""

import jax
import numpy as np
import pytest

from gnp_scale.checkpoint.host_copy import copy_to_host
from gnp_scale.mesh import BATCH, FSDP, REPLICA, REPLICATED, TENSOR, P, sharding

SPECS = {
    "whole": REPLICATED,
    "over one axis": P(None, FSDP),
    "over two": P(TENSOR, FSDP),
    "over two, in one dimension": P(BATCH),
    "over the axis of the copies": P(REPLICA),
    "over all": P((REPLICA, FSDP), TENSOR),
}
MESHES = [(1, 8, 1), (2, 2, 2), (8, 1, 1), (1, 4, 2)]


@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_a_host_keeps_one_copy_of_each_shard(mesh, set_mesh):
    set_mesh(*mesh)
    w_8x16 = np.arange(128, dtype=np.float32).reshape(8, 16)
    state = {name: jax.device_put(w_8x16, sharding(spec)) for name, spec in SPECS.items()}
    state["step"] = jax.device_put(np.int32(3), sharding(REPLICATED))
    copies = copy_to_host(state)
    for name, copy in copies.items():
        np.testing.assert_array_equal(copy, state[name])
        assert copy.sharding.memory_kind == "pinned_host"
        assert sum(shard.data.nbytes for shard in copy.addressable_shards) == state[name].nbytes, name


def test_the_copy_does_not_change_with_the_state(set_mesh):
    """Training reuses the buffers of the original."""
    set_mesh(fsdp=8)
    state = {"w": jax.device_put(np.ones((8, 16), np.float32), sharding(P(FSDP)))}
    copies = copy_to_host(state)
    changed = jax.jit(lambda state: {"w": state["w"] + 1}, donate_argnums=0)(state)
    np.testing.assert_array_equal(copies["w"], 1)
    np.testing.assert_array_equal(changed["w"], 2)
