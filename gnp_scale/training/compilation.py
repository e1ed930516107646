"""The programs of a run: how they are compiled, and when. All are traced at the start, and compiled in parallel."""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self

import jax
from gnp_kernels.dispatch import platform

from gnp_scale.config import ConfigError
from gnp_scale.run.environment import xla_flags
from gnp_scale.run.streams import one_line

_OPTIONS: dict[str, dict[str, str]] = {
    # By default XLA also gives convolutions to YNNPACK. Eigen's take 0.6 of the time in a step of ResNet-18.
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
    },
}
"""Options of XLA by platform, where its defaults were measured to be slower."""
_LEVEL = "xla_backend_optimization_level"
_OPTIONS_OF_ONE_CALL: dict[str, dict[str, str]] = {
    # It takes a third to a half of the time to compile initial parameters, which have the same bits.
    "cpu": {_LEVEL: "1"},
}
"""The same for a program that runs once."""
MAX_AT_ONCE = 2
"""Compilations at a time: for a large network, each takes gigabytes of host memory."""
_POLL_S = 0.2


def compiler_options(*, runs_once: bool = False) -> dict[str, str]:
    """XLA's options for programs of the current mesh. An option that `XLA_FLAGS` sets is omitted. So is the level of
    optimization if JAX disables optimizations.
    """
    options = _OPTIONS_OF_ONE_CALL if runs_once else _OPTIONS
    left = {*xla_flags(), *([_LEVEL] if is_unoptimized() else [])}
    return {name: value for name, value in options.get(platform(), {}).items() if name not in left}


def is_unoptimized() -> bool:
    """Whether JAX is told to compile without most optimizations (`JAX_DISABLE_MOST_OPTIMIZATIONS`)."""
    return bool(jax.config.read("jax_disable_most_optimizations"))


@contextlib.contextmanager
def misfits_are_config_errors() -> Iterator[None]:
    """Turns a ValueError from tracing a step into a ConfigError. Nothing has been written when steps are traced."""
    try:
        yield
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"the options do not fit each other, the network or the mesh: {one_line(error)}") from error


class Programs[Name: Hashable]:
    """Compiles each of the programs once, in threads, when it is first requested.

    The compiler does not hold Python's lock, so other work of the start continues meanwhile.
    """

    def __init__(self, traced: Mapping[Name, jax.stages.Lowered]) -> None:
        self._traced = dict(traced)
        self._compiled: dict[Name, Future[Any]] = {}
        self._threads = ThreadPoolExecutor(MAX_AT_ONCE, thread_name_prefix="compile")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def start(self, names: Iterable[Name]) -> None:
        """Starts to compile those that have not started, in this order; returns at once."""
        for name in names:
            if name not in self._compiled:
                self._compiled[name] = self._threads.submit(self._traced.pop(name).compile)

    def get(self, name: Name, unless: Callable[[], bool] = lambda: False) -> Any:
        """The compiled program; waits for it, or until `unless()` is true: then the result may be None."""
        self.start([name])
        compiled = self._compiled[name]
        while not (compiled.done() or unless()):
            wait([compiled], _POLL_S)
        return compiled.result() if compiled.done() else None
