"""The metadata that is stored beside the arrays of a checkpoint."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from gnp_scale import recipe
from gnp_scale.checkpoint.checksums import checksum_of_step, checksums
from gnp_scale.checkpoint.exactness import circumstances
from gnp_scale.config import Config

type Metadata = dict[str, Any]


class DamagedError(Exception):
    """A checkpoint differs from what was saved."""


def describe(config: Config, state: Any, scores: Mapping[str, float] | None) -> Metadata:
    """Configuration, circumstances, scores and checksums of `state`; sealed, see `verify`."""
    metadata = {
        "config": json.loads(recipe.to_json(config)),
        **circumstances(config),
        "scores": dict(scores) if scores else None,
        "checksums": checksums(state),
    }
    return metadata | {"seal": _digest(metadata)}


def verify(stored: Metadata | None, step: int) -> Metadata:
    """What `describe` returned for the state after `step`, without its seal.

    Raises:
        DamagedError: it has changed since, or the state is that of another step.
    """
    metadata = dict(stored or {})
    if metadata.pop("seal", None) != _digest(metadata):
        raise DamagedError("its description differs from the saved one")
    if metadata["checksums"].get("step", checksum_of_step(step)) != checksum_of_step(step):
        raise DamagedError("it holds the state of another step")
    return metadata


def _digest(metadata: Metadata) -> str:
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()
