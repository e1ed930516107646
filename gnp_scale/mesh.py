"""The device mesh: axis names, its construction, and the few shardings that the project uses.

Every axis name of the project stands here. The axes are

* `replica`: copies of the parameters, one for each slice or host joined by a slow network;
* `fsdp`: shards of the parameters, each gathered where it is used;
* `tensor`: shards of the channels that a layer computes with.

Examples are spread over `replica` and `fsdp`. All axes are explicit: a sharding is part of an array's type.
"""

import math
from collections.abc import Collection, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gnp_scale.config import ConfigError, MeshConfig, check

REPLICA, FSDP, TENSOR = "replica", "fsdp", "tensor"
AXES = (REPLICA, FSDP, TENSOR)
BATCH = (REPLICA, FSDP)
ALL = (REPLICA, FSDP, TENSOR)

REPLICATED = P()


def batch_spec(ndim: int = 1, axes: tuple[str, ...] = BATCH) -> P:
    """Spec of an array of rank `ndim` whose leading dimension is the examples, spread over `axes`."""
    return P(axes, *(None,) * (ndim - 1))


def resolve(config: MeshConfig, num_devices: int) -> MeshConfig:
    """`config` on `num_devices` devices: an axis of -1 takes what the others leave.

    Raises:
        ConfigError: the axes do not multiply to the number of devices.
    """
    sizes = [config.replica, config.fsdp, config.tensor]
    named = " x ".join(f"{axis} {size}" for axis, size in zip(AXES, sizes, strict=True))
    fixed = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and num_devices % fixed == 0:
        sizes[sizes.index(-1)] = num_devices // fixed
    if math.prod(sizes) != num_devices:
        raise ConfigError(
            f"a mesh of {named} does not fit {num_devices} devices: "
            "change --mesh.replica, --mesh.fsdp or --mesh.tensor so that they multiply to the number of devices, "
            "with -1 for at most one that takes the rest"
        )
    return MeshConfig(*sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (all devices of all processes when None), every axis explicit.

    Where the devices are several slices, joined by a slow network, `replica` lies across them, and `fsdp` where the
    replicas are fewer.

    Raises:
        ConfigError: the axes do not fit the devices, or their slices.
    """
    devices = jax.devices() if devices is None else devices
    config = resolve(config, len(devices))
    axis_types = (AxisType.Explicit,) * len(AXES)
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        shape = (config.replica, config.fsdp, config.tensor)
        return jax.make_mesh(shape, AXES, axis_types, devices=devices)
    across = (math.gcd(config.replica, num_slices), num_slices // math.gcd(config.replica, num_slices), 1)
    check(
        config.fsdp % across[1] == 0,
        f"{num_slices} slices do not share out a mesh of replica {config.replica} and fsdp {config.fsdp}: "
        "make --mesh.replica a multiple of the number of slices",
    )
    within = (config.replica // across[0], config.fsdp // across[1], config.tensor)
    grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types)


def current_axis_size(axes: str | tuple[str, ...] | None) -> int:
    """Number of shards that `axes` stand for on the current mesh, outside of any `shard_map`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[axis] for axis in _names(axes) if axis not in mesh.manual_axes)


def on_mesh(spec: P) -> P | None:
    """`spec` as an `out_sharding` on the current mesh; None without one.

    Axes that an enclosing `shard_map` took over are left out: each of their shards has a program of its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else _without(spec, mesh.manual_axes)


def fit(spec: P, shape: tuple[int, ...]) -> P | None:
    """`spec` without the axes that do not divide the dimension of `shape` they stand at; None without a mesh.

    Small leaves (a head of 10 classes, a bias) are whole on every device rather than padded.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return None
    fitted = (axes if dim % current_axis_size(axes) == 0 else None for axes, dim in zip(spec, shape, strict=True))
    return on_mesh(P(*fitted))


def gather(x: jax.Array, axes: tuple[str, ...] = (FSDP,)) -> jax.Array:
    """`x` whole over `axes` and sharded as before over the others: how a layer fetches an FSDP parameter to use it.

    The gradient of a gather is a reduce-scatter, so gradients come out sharded like the parameters.
    """
    spec = jax.typeof(x).sharding.spec
    if not any(spec):
        return x
    return jax.sharding.reshard(x, _without(spec, axes))


def _without(spec: P, axes: Collection[str]) -> P:
    kept = (tuple(name for name in _names(entry) if name not in axes) for entry in spec)
    return P(*(names[0] if len(names) == 1 else names or None for names in kept))


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def sharding(spec: P) -> NamedSharding:
    """`spec` on the current mesh, for arrays that are placed from the host."""
    return NamedSharding(jax.sharding.get_mesh(), spec)
