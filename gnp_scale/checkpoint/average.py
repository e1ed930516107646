"""The average of several checkpoints of one run."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from gnp_scale.checkpoint.bucket import open_store
from gnp_scale.checkpoint.restore import (
    MOST_LISTINGS,
    deleted,
    deletes_too_soon,
    newest_of,
    stored_steps,
)
from gnp_scale.checkpoint.store import Store
from gnp_scale.checkpoint.whole import check_stored, load_whole
from gnp_scale.config import ConfigError
from gnp_scale.run.messages import announce
from gnp_scale.run.store import Folder
from gnp_scale.training.state import NetworkState


def load_average(run_dir: Folder, abstract_state: NetworkState, num: int) -> tuple[int, NetworkState]:
    """(step, state) of the newest intact checkpoint, with the averages of the parameters, batch statistics and moving
    averages of the newest `num`.

    Every checkpoint has the same weight (arXiv 1706.03762, section 6.1; arXiv 1803.05407 with its equal weights). From
    the newest to the oldest, the k-th one changes the mean m to m + (w_k - m) / k, in float32. So what is equal in all,
    such as frozen parameters, keeps its bits. Averaged batch statistics are an approximation of those that the averaged
    network would measure, as in `TrainState.ema`. Two networks are in memory at a time. Changes nothing in the folder.

    Raises:
        ConfigError: fewer than `num` checkpoints are intact.
    """
    store = open_store(run_dir)
    for _ in range(MOST_LISTINGS):
        with contextlib.suppress(_DeletedError):
            return _average_of(_newest_first(run_dir, store, abstract_state, num))
    raise deletes_too_soon(run_dir)


class _DeletedError(Exception):
    """The run has deleted a checkpoint after it was listed and before it was read."""


def _average_of(states: Iterator[tuple[int, NetworkState]]) -> tuple[int, NetworkState]:
    newest, mean = next(states)
    used = [newest]
    for step, older in states:
        used.append(step)
        mean = _with_sharded(mean, older, np.float32(len(used)))
        # Before the next one is read.
        del older
    announce(f"the average of the checkpoints of steps {', '.join(map(str, reversed(used)))}")
    return newest, mean


def load_whole_average(run_dir: Folder, num: int, step: int | None = None) -> tuple[int, Any]:
    """(step, state) as `load_whole`, with the averages that `load_average` has: of the checkpoint of `step`, the newest
    when None, and those before it, `num` together. The state has parameters, batch statistics and moving averages.

    Raises:
        ConfigError: there are not so many, or one of them is damaged.
    """
    store = open_store(run_dir)
    for _ in range(MOST_LISTINGS):
        stored = stored_steps(run_dir, store)
        if step is not None:
            check_stored(run_dir, step, stored)
        steps = [older for older in stored if step is None or older <= step][-num:]
        if len(steps) < num:
            raise _too_few(run_dir, len(steps), num, step)
        try:
            return _whole_average(run_dir, steps)
        except ConfigError:
            if not deleted(store, steps):
                raise
    raise deletes_too_soon(run_dir)


def _whole_average(run_dir: Folder, steps: list[int]) -> tuple[int, Any]:
    mean = None
    for k, number in enumerate(reversed(steps), start=1):
        whole = load_whole(run_dir, number)[1]
        parts = {name: whole[name] for name in ("params", "batch_stats", "ema") if whole.get(name)}
        parts = jax.tree.map(np.asarray, parts)
        mean = parts if mean is None else _with(mean, parts, np.float32(k))
    if len(steps) > 1:
        announce(f"the average of the checkpoints of steps {', '.join(map(str, steps))}")
    return steps[-1], mean


def _newest_first(
    run_dir: Folder, store: Store, abstract_state: NetworkState, num: int
) -> Iterator[tuple[int, NetworkState]]:
    """Reads the newest `num` intact checkpoints of one listing, one after another.

    With those of several listings a gap could be between them, which a run makes that goes on meanwhile.

    Raises:
        _DeletedError: one of them is gone.
    """
    steps = stored_steps(run_dir, store)
    if len(steps) < num:
        raise _too_few(run_dir, len(steps), num)
    for num_found in range(num):
        try:
            whole = newest_of(store, steps, abstract_state)
        except ConfigError as error:
            raise (_too_few(run_dir, num_found, num) if num_found else error) from None
        if whole is None:
            raise _DeletedError
        steps = [step for step in steps if step < whole.step]
        yield whole.step, whole.state
        del whole


def _too_few(run_dir: Folder, num_found: int, num: int, step: int | None = None) -> ConfigError:
    which = "" if step is None else f" up to step {step}"
    return ConfigError(
        f"{run_dir} holds {num_found} intact checkpoints{which}, fewer than the {num} to average: average fewer, or "
        f"train with --checkpoint.keep-last {num}"
    )


def _with(mean: Any, more: Any, k: np.float32) -> Any:
    """The mean of k trees, from that of k - 1 and the last one."""
    return jax.tree.map(lambda m, w: m + (w - m) / k, mean, more)


_with_sharded = jax.jit(_with, donate_argnums=0)
