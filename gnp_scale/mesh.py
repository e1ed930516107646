"""The device mesh: axis names, its construction, and the few shardings that the project uses.

This file defines every axis name of the project. The axes are

* `replica`: copies of the parameters, one for each slice or host of a slow network;
* `fsdp`: shards of the parameters, which are gathered for use;
* `tensor`: shards of the channels that a layer computes with.

Examples are sharded over `replica` and `fsdp`. All axes are explicit: a sharding is part of an array's type.
"""

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
from gnp_kernels.trees import path_name
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gnp_scale.config import ConfigError, MeshConfig, check

REPLICA, FSDP, TENSOR = "replica", "fsdp", "tensor"
AXES = (REPLICA, FSDP, TENSOR)
BATCH = (REPLICA, FSDP)

REPLICATED = P()

# Of the parameters that are replicated over `fsdp`, on each device.
MOST_SILENT_MIB, MOST_WHOLE_MIB = 16, 256


def batch_spec(ndim: int = 1, axes: tuple[str, ...] = BATCH) -> P:
    """Spec of an array of rank `ndim`; its leading dimension is the examples, sharded over `axes`."""
    return P(axes, *(None,) * (ndim - 1))


def resolve(config: MeshConfig, num_devices: int) -> MeshConfig:
    """`config` on `num_devices` devices: an axis of -1 takes the remaining devices.

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
            "with -1 for at most one, which takes the rest"
        )
    return MeshConfig(*sizes)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices` (all devices of all processes when None), with explicit axes.

    If a slow network connects several slices of devices, `replica` spans the slices. If there are fewer replicas than
    slices, `fsdp` spans them too.

    Raises:
        ConfigError: the axes do not fit the devices, or their slices.
    """
    devices = jax.devices() if devices is None else devices
    config = resolve(config, len(devices))
    axis_types = (AxisType.Explicit,) * len(AXES)
    num_slices = len({getattr(device, "slice_index", 0) for device in devices})
    if num_slices == 1:
        shape = (config.replica, config.fsdp, config.tensor)
        # An axis may be a part of a physical one, which `jax.make_mesh` allows on few chips only.
        return Mesh(mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True), AXES, axis_types)
    across = (math.gcd(config.replica, num_slices), num_slices // math.gcd(config.replica, num_slices), 1)
    check(
        config.fsdp % across[1] == 0,
        f"a mesh of replica {config.replica} and fsdp {config.fsdp} does not divide over {num_slices} slices: "
        "make --mesh.replica a multiple of the number of slices",
    )
    within = (config.replica // across[0], config.fsdp // across[1], config.tensor)
    grid = mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)
    return Mesh(grid, AXES, axis_types)


def current_axis_size(axes: str | tuple[str, ...] | None) -> int:
    """Number of shards over `axes` of the current mesh, without those of a `shard_map`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return 1
    return math.prod(mesh.shape[axis] for axis in _names(axes) if axis not in mesh.manual_axes)


def on_mesh(spec: P) -> P | None:
    """`spec` as an `out_sharding` on the current mesh; None without a mesh.

    It omits the axes of an enclosing `shard_map`: each of their shards has its own program.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else _without(spec, mesh.manual_axes)


def resharded(x: jax.Array, spec: P) -> jax.Array:
    """`x` sharded as `spec` on the current mesh (`on_mesh`); without a mesh as it is."""
    known = on_mesh(spec)
    return x if known is None else jax.sharding.reshard(x, known)


def divisible_spec(spec: P, shape: tuple[int, ...]) -> P | None:
    """The sharding of a parameter of `shape` that is requested as `spec`; None without a mesh.

    If an axis does not divide its dimension, it may move to the largest other dimension that it divides. Only storage
    axes move: `fsdp`, and `tensor` beside it, which layers gather before they compute. Other axes are omitted. An axis
    that divides no dimension is omitted too: nothing is padded. `undivided` reports how much is replicated.
    """
    if jax.sharding.get_abstract_mesh().empty:
        return None
    wanted = [_names(entry) for entry in spec]
    fitted = [names if _divides(names, dim) else () for names, dim in zip(wanted, shape, strict=True)]
    for own, names in enumerate(wanted):
        if fitted[own] != names and FSDP in names and REPLICA not in names:
            for axis in names:
                order = sorted(range(len(shape)), key=lambda place: (place != own, -shape[place]))
                place = next((place for place in order if _divides((*fitted[place], axis), shape[place])), None)
                if place is not None:
                    fitted[place] = (*fitted[place], axis)
    return on_mesh(P(*fitted))


def _divides(axes: tuple[str, ...], dim: int) -> bool:
    return dim % current_axis_size(axes) == 0


def undivided(params: Any) -> str | None:
    """A line about the parameters that are replicated because `fsdp` divides none of their dimensions; None if few.

    Few means at most 16 MiB in all on each device, such as biases and scales. Gradient and moments take the same each.

    Raises:
        ConfigError: they take more than 256 MiB.
    """
    num_shards = current_axis_size(FSDP)
    leaves = [(_mib_per_device(x), path, x) for path, x in jax.tree.leaves_with_path(params)]
    whole = [leaf for leaf in leaves if FSDP not in axes_of_spec(leaf[2].sharding.spec)]
    num_mib = sum(num_mib for num_mib, *_ in whole)
    if num_shards == 1 or num_mib <= MOST_SILENT_MIB:
        return None
    most, path, largest = max(whole, key=lambda leaf: leaf[0])
    # The largest power of 2 that divides `fsdp` and, except for a few parameters, a dimension of each.
    better = num_shards & -num_shards
    while sum(leaf[0] for leaf in whole if all(dim % better for dim in leaf[2].shape)) > MOST_SILENT_MIB:
        better //= 2
    name, shape = path_name(path), "x".join(map(str, largest.shape))
    line = (
        f"{len(whole)} of {len(leaves)} parameters, including biases and scales, are replicated on each device: "
        f"{num_mib:.0f} MiB, and the same again for the gradient and each moment. mesh.fsdp {num_shards} divides no "
        f"dimension of the largest, {name} of {shape} ({most:.1f} MiB). "
        f"Make --mesh.fsdp {better}, and --mesh.replica {num_shards // better} times as large"
    )
    check(num_mib <= MOST_WHOLE_MIB, line)
    return line


def _mib_per_device(x: Any) -> float:
    return x.size * x.dtype.itemsize / current_axis_size(axes_of_spec(x.sharding.spec)) / 2**20


def axes_of_spec(spec: P) -> tuple[str, ...]:
    """The axes that `spec` names, in its order."""
    return tuple(name for entry in spec for name in _names(entry))


def gather(x: jax.Array, axes: tuple[str, ...] = (FSDP,), summed: Collection[str] = ()) -> jax.Array:
    """Replicates `x` over `axes` and keeps its sharding over the others: layers gather FSDP parameters for use.

    Args:
        x: A parameter.
        axes: Over which it is gathered.
        summed: Axes over which the gradient is a sum, those of the examples. Then it is reduce-scattered over the ones
            of `axes`, and what is left of it, a shard, is reduced over the others. Otherwise the compiler reduces all
            of it over all of them. It must be used by operations that JAX can differentiate so: not by convolutions.
    """
    spec = jax.typeof(x).sharding.spec
    if not any(spec):
        return x
    x = jax.sharding.reshard(x, P(*spec, reduced=set(summed) - set(axes_of_spec(spec))))
    return jax.sharding.reshard(x, P(*_without(spec, axes), reduced=set(summed)))


def scatter_sum(contract: Callable[..., jax.Array], spec: P, axis: str) -> jax.Array:
    """`contract(out_sharding=...)`, a sum over `axis`, reduce-scattered over `axis`, so that it is sharded as `spec`.

    In a `shard_map`, where JAX has no partial sums, it is reduced first, and the compiler may join this with the slice.
    """
    if on_mesh(spec) is None:
        return contract()
    is_manual = bool(jax.sharding.get_abstract_mesh().manual_axes)
    whole = on_mesh(P(*_without(spec, (axis,))))
    total = contract(out_sharding=P(*whole, unreduced=set() if is_manual else {axis}))
    return resharded(total, spec)


def is_sharded(x: jax.Array, axes: Collection[str]) -> bool:
    """Whether devices along one of `axes` hold different parts of `x`."""
    return current_axis_size(tuple(set(axes_of_spec(jax.typeof(x).sharding.spec)) & set(axes))) > 1


def axes_of_examples(x_Bx: jax.Array) -> tuple[str, ...]:
    """The axes over which the examples are sharded; none in a `shard_map`, where JAX cannot sum over the other axes."""
    is_manual = bool(jax.sharding.get_abstract_mesh().manual_axes)
    return () if is_manual else _names(jax.typeof(x_Bx).sharding.spec[0])


def specs(tree: Any) -> Any:
    """How each leaf is sharded."""
    return jax.tree.map(lambda x: jax.typeof(x).sharding.spec, tree)


def on_shards(fn: Callable[..., Any], *args: Any, out_specs: Any) -> Any:
    """`fn` on the local shards of its arguments, over the axes that no enclosing `shard_map` took over."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = set(mesh.axis_names) - set(mesh.manual_axes)
    if not axes:
        return fn(*args)
    # `fn` need not declare over which manual axes its results vary, so this is declared here for the enclosing axes.
    # Otherwise a derivative would be summed over them, as if the results were the same on all their shards.
    results = jax.shard_map(fn, in_specs=specs(args), out_specs=out_specs, axis_names=axes, check_vma=False)(*args)
    outside = set().union(*(_varying(x) for x in jax.tree.leaves(args)))
    return jax.tree.map(lambda x: _vary(x, outside), results)


def _vary(x: jax.Array, axes: set[str]) -> jax.Array:
    missing = tuple(sorted(axes - _varying(x)))
    return jax.lax.pcast(x, missing, to="varying") if missing else x


def _varying(x: jax.Array) -> frozenset[str]:
    """Manual axes along which `x` differs."""
    return jax.typeof(x).manual_axis_type.varying


def _without(spec: P, axes: Collection[str]) -> P:
    kept = (tuple(name for name in _names(entry) if name not in axes) for entry in spec)
    return P(*(names[0] if len(names) == 1 else names or None for names in kept))


def _names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (entry,) if isinstance(entry, str) else entry or ()


def sharding(spec: P) -> NamedSharding:
    """`spec` on the current mesh, for arrays that come from the host."""
    return NamedSharding(jax.sharding.get_mesh(), spec)
