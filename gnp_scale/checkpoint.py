"""Checkpoints: state, configuration and metadata in one atomic step, written while training goes on.

The only file that knows Orbax.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint.experimental.v1 as ocp
from jax.experimental import multihost_utils

from gnp_scale import __version__, recipe
from gnp_scale.config import CheckpointConfig, Config, ConfigError
from gnp_scale.state import TrainState

policies = ocp.training.preservation_policies


class Checkpoints:
    """The checkpoints of a run folder: when to save, what to keep, and how to restore.

    Saving copies the state off the devices and returns; files are written behind training, into a temporary folder
    that gets its final name once it is whole. A write that failed is raised by the next call.
    """

    def __init__(self, run_dir: Path, config: Config) -> None:
        self._config = config
        # Temporary folders are what a killed run left behind; only one run at a time writes into a folder.
        self._checkpointer = ocp.training.Checkpointer(
            _folder(run_dir), preservation_policy=_preservation(config.checkpoint), cleanup_tmp_directories=True
        )
        self._last_save_time = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._checkpointer.close()

    @property
    def latest_step(self) -> int | None:
        """The newest step that was saved; None where there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    @property
    def latest_scores(self) -> dict[str, float] | None:
        """The metrics of the evaluation that the newest checkpoint was saved with; None if there was none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.metrics

    def restore(self, abstract_state: TrainState) -> TrainState:
        """The newest checkpoint, with the types and shardings of `abstract_state`."""
        return self._checkpointer.load(abstract_state=abstract_state)

    def exactness(self) -> str:
        """What resuming from the newest checkpoint on this mesh means for the numbers, in words."""
        saved = self._checkpointer.metadata(self.latest_step).custom_metadata
        here = _machine()
        if saved["versions"] != _versions():
            changed = [name for name, number in _versions().items() if saved["versions"].get(name) != number]
            return f"saved with other versions of {', '.join(changed)}: numbers, and examples, may differ"
        if all(saved[key] == value for key, value in here.items()):
            return "on the same mesh: the run is bitwise the one that was not interrupted"
        return f"saved on {_words(saved)}, now on {_words(here)}: the same examples, numbers equal but for rounding"

    def is_due(self, step: int, metrics: Mapping[str, float] | None) -> bool:
        """Whether to save after `step`: by number, by time, or as the best evaluation; the same in every process."""
        config = self._config.checkpoint
        by_step = config.every_steps is not None and step % config.every_steps == 0
        return by_step or self._is_best(metrics) or self._is_due_by_time(step)

    def _is_best(self, metrics: Mapping[str, float] | None) -> bool:
        config = self._config.checkpoint
        if not config.keep_best or not metrics:
            return False
        earlier = [_score(config, c.metrics) for c in self._checkpointer.checkpoints if c.metrics]
        return all(_score(config, metrics) > score for score in earlier)

    def _is_due_by_time(self, step: int) -> bool:
        config = self._config.checkpoint
        # Clocks differ between processes; asking the main one is cheap, but not so cheap as to do it every step.
        if config.every_minutes is None or step % self._config.train.log_every_steps != 0:
            return False
        is_due = time.monotonic() - self._last_save_time >= 60 * config.every_minutes
        return bool(multihost_utils.broadcast_one_to_all(np.asarray(is_due))) if jax.process_count() > 1 else is_due

    def save(self, step: int, state: TrainState, metrics: Mapping[str, float] | None) -> None:
        """Saves the state after `step`, with the metrics of an evaluation at that step if there was one."""
        about = {
            "config": json.loads(recipe.to_json(self._config)),
            "versions": _versions(),
            **_machine(),
        }
        self._checkpointer.save_async(
            step, state, force=True, metrics=dict(metrics) if metrics else None, custom_metadata=about
        )
        self._last_save_time = time.monotonic()


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


def _folder(run_dir: Path) -> Path:
    return run_dir.absolute() / "checkpoints"


def _score(config: CheckpointConfig, metrics: Mapping[str, float]) -> float:
    """How good an evaluation was; the higher, the better."""
    value = metrics[config.best_metric]
    if not math.isfinite(value):
        return -math.inf
    return -value if config.best_metric == "eval/loss" else value


def _preservation(config: CheckpointConfig) -> Any:
    kept = [policies.LatestN(config.keep_last)]
    if config.keep_every_steps is not None:
        kept.append(policies.EveryNSteps(config.keep_every_steps))
    if config.keep_best:
        best = policies.BestN(
            get_metric_fn=partial(_score, config),
            n=config.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


def load_newest(run_dir: Path, abstract_state: TrainState) -> tuple[int, TrainState]:
    """(step, state) of the newest checkpoint, read without touching the folder, which a run may be writing into.

    Raises:
        ConfigError: there is no checkpoint.
    """
    with _reader(run_dir) as checkpointer:
        return checkpointer.latest.step, checkpointer.load(abstract_state=abstract_state)


def _reader(run_dir: Path) -> Any:
    if not _folder(run_dir).is_dir():
        raise ConfigError(f"{run_dir} holds no checkpoints: give the folder of a run that has saved one")
    checkpointer = ocp.training.Checkpointer(_folder(run_dir))
    if checkpointer.latest is None:
        checkpointer.close()
        raise ConfigError(f"{run_dir} holds no checkpoints: give the folder of a run that has saved one")
    return checkpointer


def fingerprint(run_dir: Path, step: int | None = None) -> tuple[int, str]:
    """(step, SHA-256) of the state saved at `step`, the newest when None: names, types, shapes and bytes of its leaves.

    Two fingerprints are equal if and only if parameters, batch statistics, optimizer state and method state are
    bitwise equal, whatever mesh or number of processes wrote them. Reads the whole state into the memory of this host.

    Raises:
        ConfigError: there is no such checkpoint.
    """
    with _reader(run_dir) as checkpointer:
        steps = [c.step for c in checkpointer.checkpoints]
        if step is not None and step not in steps:
            raise ConfigError(f"{run_dir} has no checkpoint of step {step}: it has {steps}")
        step = steps[-1] if step is None else step
        state = checkpointer.load(step, abstract_state=_on_one_device(checkpointer.metadata(step).metadata))
    digest = hashlib.sha256()
    for path, leaf in sorted((jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(state)):
        array = np.asarray(leaf)
        digest.update(f"{path} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return step, digest.hexdigest()


def _on_one_device(metadata: Any) -> Any:
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), metadata)
