"""Block sizes of the Triton kernels, and candidates for better ones."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass

_BLOCK_SIZES = (512, 1024, 2048, 4096, 8192)
_NUM_WARPS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Tuning:
    """How a kernel divides its work."""

    block_size: int
    """Number of elements per program."""
    num_warps: int
    """Number of warps per program; a warp is 32 threads on NVIDIA's GPUs."""


_DEFAULTS = {
    "squared_norm": Tuning(4096, 8),
    "dots": Tuning(4096, 8),
    "perturb": Tuning(2048, 8),
    "blend_update": Tuning(1024, 4),
}
_trials: dict[str, Tuning] = {}


def candidates(op: str) -> list[Tuning]:
    """Candidates for `op`, the default first: 4 to 32 elements per thread."""
    grid = [Tuning(size, warps) for size in _BLOCK_SIZES for warps in _NUM_WARPS]
    return sorted((t for t in grid if 4 <= t.block_size // (32 * t.num_warps) <= 32), key=lambda t: t != _DEFAULTS[op])


def tuning_of(op: str) -> Tuning:
    """The one on trial, otherwise the default."""
    return _trials.get(op, _DEFAULTS[op])


def tunings() -> dict[str, dict[str, int]]:
    """The result of `tuning_of` for every operation, as plain numbers."""
    return {op: asdict(tuning_of(op)) for op in _DEFAULTS}


@contextlib.contextmanager
def trial(op: str, tuning: Tuning | None) -> Iterator[None]:
    """While it is entered, `op` is traced with `tuning`, unless that is None."""
    before = dict(_trials)
    _trials.update({} if tuning is None else {op: tuning})
    try:
        yield
    finally:
        _trials.clear()
        _trials.update(before)
