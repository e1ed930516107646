"""What is stored beside the arrays of a checkpoint, and what it says about resuming here."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax

from gnp_scale import __version__, recipe
from gnp_scale.checkpoint.checksums import checksums
from gnp_scale.config import Config

type About = dict[str, Any]


class DamagedError(Exception):
    """A checkpoint is not what was saved."""


def describe(config: Config, state: Any, scores: Mapping[str, float] | None) -> About:
    """Configuration, versions, machine, scores and checksums of `state`; sealed, see `unseal`."""
    about = {
        "config": json.loads(recipe.to_json(config)),
        "versions": _versions(),
        **_machine(),
        "scores": dict(scores) if scores else None,
        "checksums": checksums(state),
    }
    return about | {"seal": _seal(about)}


def unseal(stored: About | None) -> About:
    """What `describe` returned, without its seal.

    Raises:
        DamagedError: it was changed since.
    """
    about = dict(stored or {})
    if about.pop("seal", None) != _seal(about):
        raise DamagedError("its description is not the one that was saved")
    return about


def _seal(about: About) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def exactness(about: About) -> str:
    """What resuming from this checkpoint on the current mesh means for the numbers, in words."""
    here = _machine()
    if about["versions"] != _versions():
        changed = [name for name, number in _versions().items() if about["versions"].get(name) != number]
        return f"saved with other versions of {', '.join(changed)}: numbers, and examples, may differ"
    if all(about[key] == value for key, value in here.items()):
        return "on the same mesh: the run is bitwise the one that was not interrupted"
    return f"saved on {_words(about)}, now on {_words(here)}: the same examples, numbers equal but for rounding"


def _versions() -> dict[str, str]:
    """Versions of all that numbers and the stream of examples depend on."""
    libraries = {name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "grain")}
    return {"gnp_scale": __version__, **libraries}


def _machine() -> dict[str, Any]:
    return {
        "mesh": dict(jax.sharding.get_abstract_mesh().shape),
        "num_processes": jax.process_count(),
        "device": jax.devices()[0].device_kind,
    }


def _words(machine: Mapping[str, Any]) -> str:
    axes = " x ".join(f"{axis} {size}" for axis, size in machine["mesh"].items())
    return f"{axes} ({machine['device']}, {machine['num_processes']} processes)"
