"""Block sizes of the Triton kernels: what was measured on a kind of device, and defaults for others."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax

_BLOCK_SIZES = (512, 1024, 2048, 4096, 8192)
_NUM_WARPS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Tuning:
    """How a kernel divides its work."""

    block_size: int
    """Elements that a program works on."""
    num_warps: int
    """Warps, of 32 threads on NVIDIA's GPUs, that a program runs on."""


_DEFAULTS = {
    "squared_norm": Tuning(4096, 8),
    "dots": Tuning(4096, 8),
    "perturb": Tuning(2048, 8),
    "blend_update": Tuning(1024, 4),
}
_trials: dict[str, Tuning] = {}


def candidates(op: str) -> list[Tuning]:
    """What to try for `op`, the default first: 4 to 32 elements a thread."""
    grid = [Tuning(size, warps) for size in _BLOCK_SIZES for warps in _NUM_WARPS]
    return sorted((t for t in grid if 4 <= t.block_size // (32 * t.num_warps) <= 32), key=lambda t: t != _DEFAULTS[op])


def tuning_of(op: str) -> Tuning:
    """The one on trial, else what was measured to be best on the device that is traced for, else the default."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    kind = jax.devices()[0].device_kind if device is None else device.device_kind
    return _trials.get(op) or _measured(path(kind)).get(op, _DEFAULTS[op])


def tunings() -> dict[str, dict[str, int]]:
    """What `tuning_of` says of every operation, as plain numbers."""
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


def path(device_kind: str) -> Path:
    """The file for a kind of device, such as tuned/nvidia_h100_80gb_hbm3.json."""
    return Path(__file__).parent / "tuned" / (re.sub(r"[^a-z0-9]+", "_", device_kind.lower()) + ".json")


def save(device_kind: str, tunings: dict[str, Tuning]) -> Path:
    """Writes what was measured, and returns the file."""
    file = path(device_kind)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({op: asdict(tuning) for op, tuning in tunings.items()}, indent=2) + "\n")
    _measured.cache_clear()
    return file


@cache
def _measured(file: Path) -> dict[str, Tuning]:
    """What `save` wrote; nothing where there is no file.

    Raises:
        ValueError: the file holds something else.
    """
    if not file.exists():
        return {}
    try:
        found = json.loads(file.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(op in _DEFAULTS and _is_tuning(entry) for op, entry in found.items()):
        raise ValueError(
            f"{file} gives some of {', '.join(_DEFAULTS)} a block_size, one of {_BLOCK_SIZES}, and num_warps, one of "
            f"{_NUM_WARPS}. Got something else. Delete it, or write it anew: gnp-scale bench kernels."
        )
    return {op: Tuning(**entry) for op, entry in found.items()}


def _is_tuning(entry: Any) -> bool:
    if not isinstance(entry, dict) or entry.keys() != {"block_size", "num_warps"}:
        return False
    return entry["block_size"] in _BLOCK_SIZES and entry["num_warps"] in _NUM_WARPS
