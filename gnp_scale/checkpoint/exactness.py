"""What the bits of a run depend on besides its configuration, and what a difference means for a resumed run.

All of this is stored with each checkpoint. Values that an earlier version did not store are unknown, and the message
says so.
"""

import functools
import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
from gnp_kernels.tuning import tunings

from gnp_scale import __version__
from gnp_scale.config import Config
from gnp_scale.data.small_sets import READERS
from gnp_scale.run.environment import is_deterministic
from gnp_scale.training import update
from gnp_scale.training.compilation import compiler_options, is_unoptimized

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "grain", "numpy", "scipy")
_KERNEL_LIBRARIES = ("jax-triton", "triton")
_IMAGE_LIBRARIES = ("simplejpeg", "opencv-python-headless", "pillow")
"""They decode and resize."""
_RANDOM = ("jax_default_prng_impl", "jax_threefry_partitionable", "jax_random_seed_offset")
_COMPILER_FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_IRRELEVANT_FLAGS = ("--xla_force_host_platform_device_count", "--xla_dump_")
_VECTORS = ("sse", "ssse", "avx", "fma", "f16c", "amx", "asimd", "sve", "bf16", "i8mm")
_STEP_PROGRAMS = "jit_train_step-*-cache"
"""JAX's names of the compiled steps in its cache."""


def circumstances(config: Config) -> dict[str, Any]:
    """Versions, random generator, mesh, processes, devices and compiler settings of a run of `config`, as JSON values.

    With several processes, those of the calling process.
    """
    kernels = update.implementation(config)
    return {
        "versions": _versions(kernels, has_files=config.data.name not in READERS),
        "random": {name: getattr(jax.config, name) for name in _RANDOM},
        "mesh": dict(jax.sharding.get_abstract_mesh().shape),
        "num_processes": jax.process_count(),
        "device": jax.devices()[0].device_kind,
        "compiled": _compiled(kernels),
        "step programs": _step_programs(),
    }


def _versions(kernels: str, *, has_files: bool) -> dict[str, str | None]:
    names = _LIBRARIES + (_KERNEL_LIBRARIES if kernels == "triton" else ()) + (_IMAGE_LIBRARIES if has_files else ())
    return {"gnp_scale": __version__} | {name: _version(name) for name in names}


@functools.cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _compiled(kernels: str) -> dict[str, str | None]:
    """What determines how a program is compiled, and so the order of its sums."""
    flags = {
        name: [flag for flag in os.environ.get(name, "").split() if _is_relevant(flag)] for name in _COMPILER_FLAGS
    }
    return {
        "kernels": kernels,
        "block sizes of kernels": _digest(tunings()) if kernels == "triton" else None,
        "JAX_DEFAULT_MATMUL_PRECISION": jax.config.jax_default_matmul_precision,
        **{name: " ".join(sorted(values)) for name, values in flags.items()},
        "compiler options": " ".join(f"{name}={value}" for name, value in compiler_options().items()) or None,
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "True" if is_unoptimized() else None,
        # On accelerators, it names compiler and driver.
        "back end": " ".join(jax.devices()[0].client.platform_version.split()),
        "CPU": _cpu() if jax.default_backend() == "cpu" else None,
    }


def _step_programs() -> list[str] | None:
    """Names of the compiled steps that JAX keeps; None where a program compiled anew computes the same bits."""
    if jax.default_backend() != "gpu" or is_deterministic():
        return None
    folder = jax.config.jax_compilation_cache_dir
    return sorted(path.name for path in Path(folder).glob(_STEP_PROGRAMS)) if folder else []


def _is_relevant(flag: str) -> bool:
    return not flag.startswith(_IRRELEVANT_FLAGS)


@functools.cache
def _cpu() -> str:
    """Model and vector instructions of the host's CPU, for which XLA compiles."""
    info = Path("/proc/cpuinfo")
    first = info.read_text().partition("\n\n")[0] if info.exists() else ""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    features = (fields.get("flags") or fields.get("Features") or "").split()
    vectors = sorted(name for name in features if name.startswith(_VECTORS))
    return f"{fields.get('model name') or platform.machine()} ({_digest(vectors)})"


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def exactness(saved: Mapping[str, Any], config: Config) -> str:
    """A message: how exact a run of `config` is if it resumes here from a checkpoint saved in these circumstances."""
    here, saved = circumstances(config), _with_present_names(saved)
    other = _different(saved, here, "versions")
    if other:
        return f"saved with other versions of {', '.join(other)}: numbers, and examples, may differ"
    other = _different(saved, here, "random")
    if other:
        return f"saved with another {', '.join(other)}: numbers, and examples, may differ"
    rounding = "the same examples, numbers equal up to rounding"
    if any(saved[key] != here[key] for key in ("mesh", "num_processes", "device")):
        return f"saved on {_words(saved)}, now on {_words(here)}: {rounding}"
    other = _different(saved, here, "compiled")
    if other:
        changes = (f"{name} {saved['compiled'][name]} -> {here['compiled'][name]}" for name in other)
        return f"on the same mesh, with another {', '.join(changes)}: {rounding}"
    kept = here["step programs"]
    if kept is not None and not _is_kept(saved.get("step programs"), kept):
        return (
            f"on the same mesh: {rounding}, because XLA chooses algorithms for a GPU by their times, and the compiled "
            f"step of the earlier start is not in {jax.config.jax_compilation_cache_dir}"
        )
    unknown = _unknown(saved, here)
    if unknown:
        return (
            "on the same mesh: the run is bitwise the one that was not interrupted, if the values that the checkpoint "
            f"lacks have not changed ({', '.join(unknown)})"
        )
    return "on the same mesh: the run is bitwise the one that was not interrupted"


def _is_kept(saved: list[str] | None, kept: list[str]) -> bool:
    return saved is not None and set() < set(saved) <= set(kept)


def _with_present_names(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    compiled = dict(saved.get("compiled", {}))
    if compiled.get("kernels") == "reference":
        compiled["kernels"] = "xla"  # Which had this name until 2026-11-26.
    if compiled:
        compiled.setdefault("compiler options", None)  # There were none until 2026-11-26.
    return {**saved, "compiled": compiled}


def _different(saved: Mapping[str, Any], here: Mapping[str, Any], topic: str) -> list[str]:
    """The values that both know and that differ."""
    then, now = saved.get(topic, {}), here[topic]
    return [name for name in now if name in then and then[name] != now[name]]


def _unknown(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterable[str]:
    """The values that matter here and that a checkpoint of an earlier version lacks."""
    topics = ("versions", "random", "compiled")
    return [name for t in topics for name, now in here[t].items() if now and name not in saved.get(t, {})]


def _words(machine: Mapping[str, Any]) -> str:
    axes = " x ".join(f"{axis} {size}" for axis, size in machine["mesh"].items())
    return f"{axes} ({machine['device']}, {machine['num_processes']} processes)"
