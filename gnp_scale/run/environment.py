"""Settings of a process from its environment: flags, networks, memory and devices."""

import contextlib
import ctypes
import logging
import os

import jax
from jax._src import hardware_utils

from gnp_scale.checks import ConfigError, PassingError, check
from gnp_scale.run.streams import say

DETERMINISTIC_FLAGS = ("xla_gpu_deterministic_ops", "xla_gpu_exclude_nondeterministic_ops")
"""Either in XLA_FLAGS makes XLA choose fixed algorithms for GPUs."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # Names of glibc's malloc.h.
PROXY = "grpc_proxy"
_FALL_BACK = "may be present on this machine"


def number(name: str, default: int) -> int:
    """The whole number in an environment variable; `default` if it is not set or empty.

    Raises: ConfigError: it is not a number.
    """
    text = os.environ.get(name, "") or str(default)
    check(text.isdecimal(), f"{name} is {text!r}: set it to a whole number, or unset it")
    return int(text)


def check_jax_settings() -> None:
    """Raises ConfigError for JAX settings in environment variables with which training cannot work."""
    for name, needed in {
        "jax_enable_x64": False,
        "jax_disable_jit": False,
        "jax_numpy_dtype_promotion": "standard",
    }.items():
        value = getattr(jax.config, name)
        check(value == needed, f"{name.upper()} is {value}, but training works with {needed} alone: unset it")


def xla_flags() -> dict[str, str]:
    """The flags in XLA_FLAGS with their values; a flag alone has an empty one."""
    parts = (flag.removeprefix("--").partition("=") for flag in os.environ.get("XLA_FLAGS", "").split())
    return {name: value for name, _, value in parts}


def is_deterministic() -> bool:
    """Whether XLA_FLAGS turns one of `DETERMINISTIC_FLAGS` on: as XLA reads it, alone or with true or 1."""
    flags = xla_flags()
    return any(flags.get(name, "false").lower() in ("", "true", "1") for name in DETERMINISTIC_FLAGS)


def user_cache(name: str) -> str | None:
    """The folder `name` of this project in the user's cache folder, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):
        # With an empty HOME it would be a folder of the root.
        base = "" if os.environ.get("HOME") == "" else os.path.expanduser("~/.cache")
    return os.path.join(base, "gnp_scale", name) if os.path.isabs(base) else None


def bypass_proxies() -> None:
    """Lets the processes of a run connect directly, without a proxy from the environment.

    gRPC prefers `grpc_proxy` to `https_proxy` and `http_proxy`; an empty value means no proxy. A `grpc_proxy` that the
    user set stays.
    """
    jax.config.update("jax_check_proxy_envs", False)
    if PROXY not in os.environ:
        os.putenv(PROXY, "")


def keep_freed_memory() -> None:
    """Makes each step on CPUs take its memory from that of the step before; only glibc has this setting.

    By default glibc returns large blocks to the system at once, which clears every page when a step uses it again.
    Threads other than the main one have no heap for large blocks. Therefore `processes.start` lets a program run in the
    thread that calls it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(name, 2**31 - 1)


def check_devices(is_main: bool) -> None:
    """Starts the devices; prints a line if there is an accelerator that is not used.

    Raises: ConfigError: `JAX_PLATFORMS` names a platform that JAX does not have here. PassingError: a device does not
        start.
    """
    asked = jax.config.jax_platforms
    logger = logging.getLogger("jax._src.xla_bridge")
    with contextlib.ExitStack() as stack:

        def is_needed(record: logging.LogRecord) -> bool:
            return _FALL_BACK not in record.getMessage()

        logger.addFilter(is_needed)
        stack.callback(logger.removeFilter, is_needed)
        try:
            platform = jax.default_backend()
        except (RuntimeError, AssertionError) as error:
            reason = " ".join(str(error).split()) or "JAX found no device of that platform"
            if "not in the list of known backends" in reason:
                raise ConfigError(f"JAX_PLATFORMS is {asked}: {reason}") from error
            what = f"the devices do not start, JAX_PLATFORMS is {asked}" if asked else "the devices do not start"
            raise PassingError(f"{what}: {reason}") from error
    if platform == "cpu":
        keep_freed_memory()
    unused = None if asked or platform != "cpu" else unused_accelerator()
    if unused is not None and is_main:
        say(f"{unused}: training on the CPU (JAX_PLATFORMS=cpu says that this is meant)")


def unused_accelerator() -> str | None:
    """An accelerator of this machine that JAX does not use, and how to use it; None if there is none."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if hardware_utils.has_visible_nvidia_gpu() and not hidden:
        return "this machine has an NVIDIA GPU that JAX cannot use; pip install '.[cuda]' has what it needs"
    num_chips, _ = hardware_utils.num_available_tpu_chips_and_device_id()
    if num_chips > 0:
        return "this machine has a TPU that JAX cannot use; pip install '.[tpu]' has what it needs"
    return None
