"""What is stored beside the arrays of a checkpoint."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gnp_scale import recipe
from gnp_scale.checkpoint.checksums import checksums
from gnp_scale.checkpoint.exactness import circumstances
from gnp_scale.config import Config

type About = dict[str, Any]


class DamagedError(Exception):
    """A checkpoint is not what was saved."""


def describe(config: Config, state: Any, scores: Mapping[str, float] | None) -> About:
    """Configuration, circumstances, scores and checksums of `state`; sealed, see `unseal`."""
    about = {
        "config": json.loads(recipe.to_json(config)),
        **circumstances(config),
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
