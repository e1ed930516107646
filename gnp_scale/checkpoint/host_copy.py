"""A copy of a state in host memory: each process keeps one copy of every shard that its devices hold."""

from functools import cache
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from gnp_scale.mesh import axes_of_spec

_MEMORY = "pinned_host"
_COPIES = "copies"
"""Mesh axis of the host copy: the processes that hold the same shard."""


def copy_to_host(state: Any) -> Any:
    """Copies `state` to pinned host memory, as global arrays over some of the devices.

    If several devices of a process hold the same shard, only one of them copies it.
    """
    leaves, treedef = jax.tree.flatten(state)
    shardings = [_one_of_each(leaf.sharding) for leaf in leaves]
    shards = [_shards(leaf, sharding) for leaf, sharding in zip(leaves, shardings, strict=True)]
    places = [[SingleDeviceSharding(shard.device, memory_kind=_MEMORY) for shard in each] for each in shards]
    copies = jax.device_put([[shard.data for shard in each] for each in shards], places)
    arrays = [
        jax.make_array_from_single_device_arrays(leaf.shape, sharding, each)
        for leaf, sharding, each in zip(leaves, shardings, copies, strict=True)
    ]
    return jax.tree.unflatten(treedef, arrays)


def _shards(leaf: jax.Array, sharding: NamedSharding) -> list[Any]:
    return [shard for shard in leaf.addressable_shards if shard.device in sharding.device_set]


@cache
def _one_of_each(sharding: NamedSharding) -> NamedSharding:
    """`sharding` over the devices that are the first of their process with a shard.

    It uses all devices if the shards do not follow one pattern over the processes.
    """
    mesh, spec = sharding.mesh, sharding.spec
    assert isinstance(mesh, Mesh)
    used = axes_of_spec(spec)
    unused = tuple(name for name in mesh.axis_names if name not in used)
    order = [mesh.axis_names.index(name) for name in (*unused, *used)]
    sizes = [mesh.shape[name] for name in used]
    devices = mesh.devices.transpose(order).reshape(-1, int(np.prod(sizes)))
    kept = [_first_of_each_process(column) for column in devices.T]
    if any(places != kept[0] for places in kept):
        return sharding.with_memory_kind(_MEMORY)
    grid = devices[kept[0]].reshape(-1, *sizes)
    return NamedSharding(Mesh(grid, (_COPIES, *used)), PartitionSpec(*spec), memory_kind=_MEMORY)


def _first_of_each_process(devices: np.ndarray) -> list[int]:
    processes = [device.process_index for device in devices]
    return [place for place, process in enumerate(processes) if process not in processes[:place]]
