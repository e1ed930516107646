"""Processes that train together have one command and one environment."""

import hashlib
import importlib.metadata
import json
import socket
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from gnp_scale import __version__, recipe
from gnp_scale.config import Config, ConfigError, DataConfig
from gnp_scale.run.budgets import DEFAULTS_S, VARIABLE, budgets_s
from gnp_scale.run.consensus import all_gather
from gnp_scale.run.processes import coordination

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "grain")
"""On which the numbers and the stream of examples depend."""
_MOST_TOLD = 3
"""Options that differ."""


def check_agreement(config: Config) -> None:
    """Confirms, before anything is compiled, that all processes have equally many devices, and the same versions,
    configuration and budgets.

    The folder of data sets may differ between hosts.

    Raises:
        ConfigError: one of them differs from process 0; every process raises.
    """
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _LIBRARIES)
    changed = [f"{name}={seconds:g}" for name, seconds in budgets_s().items() if seconds != DEFAULTS_S[name]]
    devices = f"devices: {jax.local_device_count()}"
    mine = f"{devices}, gnp-scale {__version__}, {versions}, {VARIABLE}={','.join(changed)}"
    options = recipe.flatten(replace(config, data=replace(config.data, root=DataConfig.root)))
    # Equal where the options are equal; much shorter.
    digest = hashlib.sha256(json.dumps(options).encode()).hexdigest()
    theirs = all_gather((mine, digest, socket.gethostname()))
    for n, (line, its_digest, host) in enumerate(theirs):
        what = line, theirs[0][0]
        if line == theirs[0][0] and its_digest != theirs[0][1]:
            both = all_gather(options if coordination()[1] in (0, n) else {})
            what = _words(both[n], both[0]), _words(both[0], both[n])
        if what[0] != what[1]:
            raise ConfigError(
                f"process {n} has {what[0]} on {host}, but process 0 has {what[1]} on {theirs[0][2]}: start all with "
                "the same"
            )


def _words(options: Mapping[str, Any], others: Mapping[str, Any]) -> str:
    """The options that differ from `others`, with their values."""
    differing = [f"{name} {value}" for name, value in options.items() if others[name] != value]
    more = [f"{len(differing) - _MOST_TOLD} more"] if len(differing) > _MOST_TOLD else []
    return " and ".join([", ".join(differing[:_MOST_TOLD]), *more])
