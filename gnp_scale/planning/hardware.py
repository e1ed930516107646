"""Accelerators that a plan knows, and clusters of them; figures are published ones unless a comment says otherwise.

Sources: Google Cloud's pages of TPU v5e, v5p and v6e, and of its machine types (cores of hosts); NVIDIA's data sheets
of H100, H200 and DGX H100. The memory of a TPU that a program may use is the one that its compiler names when a program
exceeds it.
"""

import math
import operator
import re
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Literal

import jax
from jax.experimental import topologies

from gnp_scale.config import ConfigError, check
from gnp_scale.monitoring.flops import peak_flops_per_s

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """One device. Rates are in bytes per second of one direction, of all links of a chip together."""

    platform: Literal["tpu", "cuda"]
    """XLA's name of the compiler."""
    device_kind: str
    memory_bytes: int
    """What a program may use."""
    memory_rate: float
    fast_rate: float
    """To other chips of its slice, or to other GPUs of its host."""
    slow_rate: float
    """To other slices or hosts, through the network of the data centre."""
    chips_per_host: int
    cores_per_host: int
    clock_hz: float = 0.0
    """Of a TPU; it follows from the peak rate and the size of the matrix units."""
    matmul_share: float = 1.0
    """Of the peak rate, which a large product of matrices reaches, where the compiler estimates no times."""
    copy_share: float = 1.0
    """The same of a copy and the rate of the memory."""
    largest_slice: tuple[int, ...] = ()
    """The pod, as Google documents it: 256 of v5e or v6e, 8,960 of v5p. Of TPUs."""

    @property
    def peak_flops_per_s(self) -> float:
        """Dense bfloat16 FLOP/s."""
        peak = peak_flops_per_s(self.device_kind)
        assert peak is not None
        return peak


# Both shares are those that benchmarks/results/2026-11-26-gpu-h200.md measured on an H200.
_NVIDIA_SHARES = {"matmul_share": 718 / 989, "copy_share": 3880 / 4800}
CHIPS = {
    "v5e": Chip("tpu", "TPU v5 lite", int(15.75 * GIB), 819e9, 200e9, 3.125e9, 4, 112, 1.50e9, largest_slice=(16, 16)),
    "v5p": Chip("tpu", "TPU v5", int(95.73 * GIB), 2765e9, 600e9, 6.25e9, 4, 208, 1.75e9, largest_slice=(16, 20, 28)),
    "v6e": Chip("tpu", "TPU v6 lite", int(31.24 * GIB), 1640e9, 400e9, 12.5e9, 4, 180, 1.75e9, largest_slice=(16, 16)),
    "h100": Chip("cuda", "NVIDIA H100 80GB HBM3", 84978434048, 3352.32e9, 450e9, 50e9, 8, 208, **_NVIDIA_SHARES),
    "h200": Chip("cuda", "NVIDIA H200", 150754820096, 4800e9, 450e9, 50e9, 8, 224, **_NVIDIA_SHARES),
}
_COMPILERS = {"tpu": ("libtpu", "tpu-compiler"), "cuda": ("jax_cuda13_plugin", "gpu-compiler")}
"""By platform, a package of the compiler, and what `make` calls it."""
_H100 = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: {memory_rate:.0f} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {memory_bytes} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{device_kind}"
"""
"""NVIDIA's published figures of an H100 or H200 SXM, as XLA takes them (`GpuTargetConfigProto`)."""
_FORM = re.compile(r"(?P<chip>\w+):(?P<shape>\d+(?:x\d+){1,2})")
_MOST_HOSTS = 16_384
"""Of GPUs, each of which the compiler is told of."""
_EXAMPLES = "v5e:16x16, v5p:8x16x16, or h100:8x16 for 16 hosts of 8 GPUs"


@dataclass(frozen=True)
class Cluster:
    """The devices of a run."""

    name: str
    """As the command line has it, such as "v5p:8x16x16" or "h100:8x16"."""
    num_slices: int = 1
    """Of TPUs. The GPUs of a host are a slice, too."""
    chip: Chip = field(init=False)
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        match = _FORM.fullmatch(self.name)
        if match is None or match["chip"] not in CHIPS:
            known = ", ".join(CHIPS)
            raise ConfigError(f"--topology {self.name!r} is not known: write it as {_EXAMPLES}; chips are {known}")
        chip, shape = CHIPS[match["chip"]], tuple(int(size) for size in match["shape"].split("x"))
        check(0 not in shape, f"--topology {self.name} has no devices: give sizes of at least 1")
        if chip.platform == "cuda":
            check(
                len(shape) == 2 and self.num_slices == 1,
                f"--topology {self.name} is of GPUs: write it as h100:8x16 for 16 hosts of 8, without --num-slices",
            )
            check(
                shape[0] <= chip.chips_per_host,
                f"--topology {self.name} has {shape[0]} GPUs in a host: give at most {chip.chips_per_host}, then hosts",
            )
            check(shape[1] <= _MOST_HOSTS, f"--topology {self.name} has {shape[1]} hosts: give at most {_MOST_HOSTS}")
            object.__setattr__(self, "num_slices", shape[1])
        else:
            largest = chip.largest_slice
            fits = len(shape) == len(largest) and all(map(operator.le, sorted(shape), largest))
            what = f"--topology {self.name}: {match['chip']} has no such slice"
            check(fits, f"{what}: give {len(largest)} sizes, at most {'x'.join(map(str, largest))}")
        check(self.num_slices >= 1, f"--num-slices is {self.num_slices}: it must be at least 1")
        object.__setattr__(self, "chip", chip)
        object.__setattr__(self, "shape", shape)

    @property
    def num_chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * (self.num_slices if self.chip.platform == "tpu" else 1)

    @property
    def num_hosts(self) -> int:
        """Of all slices; small slices share no host."""
        return max(self.num_slices, -(-self.num_chips // self.chip.chips_per_host))

    @property
    def slice_size(self) -> int:
        """Chips that the fast network joins."""
        return self.num_chips // self.num_slices

    def devices(self) -> list[jax.Device]:
        """Descriptions of the devices, for a compiler.

        Raises:
            ConfigError: the compiler is not installed, or does not know the shape.
        """
        # Otherwise XLA's compiler for GPUs does not find a client.
        jax.devices()
        chip = self.chip
        options: dict[str, Any] = {"topology_name": self.name, "num_slices": self.num_slices}
        if self.slice_size == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)  # The compiler's default is a host of 2 x 2 chips.
        if chip.platform == "cuda":
            memory = {"memory_rate": chip.memory_rate, "memory_bytes": chip.memory_bytes}
            target = _H100.format(device_kind=chip.device_kind, **memory)
            num_per_host, num_hosts = self.shape
            options = {
                "topology_name": self.name.partition(":")[0],
                "topology": f"1x{num_hosts}x{num_per_host}",
                "target_config": target,
            }
        try:
            return topologies.get_topology_desc(platform=chip.platform, **options).devices
        except Exception as error:
            # Each backend has an exception of its own for a missing compiler, and for a shape that it does not make.
            what = f"the compiler for {self.name} does not start ({str(error).splitlines()[0][:200]})"
            missing = missing_compiler(chip)
            advice = f"install it with `make {missing}`" if missing else f"choose another shape, such as {_EXAMPLES}"
            raise ConfigError(f"{what}: {advice}") from error


def missing_compiler(chip: Chip) -> str | None:
    """What `make` calls the compiler for `chip`; None if it is installed."""
    package, target = _COMPILERS[chip.platform]
    return None if find_spec(package) else target
