"""Makes values the same in every process, even if each has read or measured another. A single process sends nothing.

Values pass through JAX's coordination service, not through the devices, so they do not delay a training step. Every
process calls the same functions in the same order. Without a deadline a wait has no timeout: the watchdog ends the run
if a process does not arrive, and time in which all processes are stopped does not count.
"""

import json
import math
import time
from typing import Any

import jax
from jax._src import distributed

_KEY = "gnp_scale/consensus"
_WAIT_MS = 60_000
_FAN_IN = 8
_MOST_ROUNDS = 100
"""Number of broadcasts until one round waits for all processes, so that stored values can be deleted."""


class _Rounds:
    """Counts rounds, the same in every process; an epoch begins with a round of all processes."""

    epoch = number = 0


def all_gather[T](value: T) -> list[T]:
    """The values of all processes, in the order of their ranks; waits for all of them. Values must be JSON."""
    state = distributed.global_state
    if state.client is None:
        return [value]
    _Rounds.epoch, _Rounds.number = _Rounds.epoch + 1, 0
    key = f"{_KEY}/{_Rounds.epoch}"
    values = exchange(state.client, key, state.process_id, state.num_processes, value)
    if state.process_id == 0:
        # All processes are in this round, so nobody still reads values of earlier rounds.
        state.client.key_value_delete(f"{_KEY}/{_Rounds.epoch - 1}/")
    return values


def exchange(
    client: Any, key: str, rank: int, num_processes: int, value: Any, deadline_s: float = math.inf
) -> list[Any]:
    """One round below `key`: the values of all processes, in the order of their ranks.

    Raises:
        JaxRuntimeError: the service is gone, or `time.monotonic()` has passed the deadline.
    """
    values = collect(client, key, rank, num_processes, value, deadline_s)
    if rank == 0:
        client.key_value_set(f"{key}/all", json.dumps(values))
    return _get(client, f"{key}/all", deadline_s)


def collect(
    client: Any, key: str, rank: int, num_processes: int, value: Any, deadline_s: float = math.inf
) -> list[Any]:
    """The values of the processes from `rank` on that are below it in a tree; of all processes at rank 0.

    A process waits for `_FAN_IN - 1` others at each level of the tree, so for few in a run of many.
    """
    values, stride = [value], 1
    while stride < num_processes:
        above = stride * _FAN_IN
        if rank % above:
            client.key_value_set(f"{key}/{rank}", json.dumps(values))
            break
        for other in range(rank + stride, min(rank + above, num_processes), stride):
            values += _get(client, f"{key}/{other}", deadline_s)
        stride = above
    return values


def broadcast[T](value: T) -> T:
    """The value of the main process, in all processes; the main process does not wait for them."""
    state = distributed.global_state
    if state.client is None:
        return value
    if _Rounds.number == _MOST_ROUNDS:
        return all_gather(value)[0]
    _Rounds.number += 1
    key = f"{_KEY}/{_Rounds.epoch}/main/{_Rounds.number}"
    if state.process_id == 0:
        state.client.key_value_set(key, json.dumps(value))
    return _get(state.client, key)


def agree[T](error: str | None, value: T) -> tuple[str | None, list[T]]:
    """One round for both: the error of `first_error`, and the values of all processes."""
    found = all_gather((error, value))
    name = "{}, in process {}" if len(found) > 1 else "{}"
    errors = (name.format(text, rank) for rank, (text, _) in enumerate(found) if text is not None)
    return next(errors, None), [value for _, value in found]


def first_error(error: str | None) -> str | None:
    """The error of the lowest rank that has one, with that rank if there are several processes; None without errors."""
    return agree(error, None)[0]


def _get(client: Any, key: str, deadline_s: float = math.inf) -> Any:
    while True:
        left_ms = 1000 * max(0.0, deadline_s - time.monotonic())
        try:
            return json.loads(client.blocking_key_value_get(key, round(min(_WAIT_MS, left_ms))))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error) or left_ms <= _WAIT_MS:
                raise
