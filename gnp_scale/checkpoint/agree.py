"""Decisions that every process takes alike; in one process they cost nothing.

They pass through the coordination service, beside the devices, so a training step under way is not in their way. Every
process calls the same functions in the same order.
"""

import itertools
import json
from collections.abc import Sequence
from typing import Any

import jax
from jax._src import distributed

_KEY = "gnp_scale/agree"
_TIMEOUT_MS = 20 * 60 * 1000
"""As long as Orbax gives a write; a process that is late in a stage is found by the watchdog long before."""

_rounds = itertools.count()


def first_problem(problem: str | None) -> str | None:
    """The problem of the first process that has one, with its rank; None where none has."""
    if jax.process_count() == 1:
        return problem
    problems = enumerate(_from_all(problem))
    return next((f"{found}, in process {rank}" for rank, found in problems if found is not None), None)


def all_true(condition: bool) -> bool:
    """Whether `condition` holds in every process."""
    return condition if jax.process_count() == 1 else all(_from_all(condition))


def from_main[T: (bool, Sequence[int])](value: T) -> T:
    """What the main process says, whatever the others were given."""
    if jax.process_count() == 1:
        return value
    key = f"{_KEY}/{next(_rounds)}"
    if jax.process_index() == 0:
        _client().key_value_set(key, json.dumps(value))
    return _get(key)


def _from_all(value: bool | str | None) -> list[Any]:
    """The values of all processes, in the order of their ranks: each tells the main one, which tells them all."""
    number = next(_rounds)
    key = f"{_KEY}/{number}"
    _client().key_value_set(f"{key}/{jax.process_index()}", json.dumps(value))
    if jax.process_index() == 0:
        values = [_get(f"{key}/{rank}") for rank in range(jax.process_count())]
        _client().key_value_set(f"{key}/all", json.dumps(values))
        # All are in this round, so nobody reads those before any more.
        _client().key_value_delete(f"{_KEY}/{number - 1}/")
    return _get(f"{key}/all")


def _get(key: str) -> Any:
    return json.loads(_client().blocking_key_value_get(key, _TIMEOUT_MS))


def _client() -> Any:
    return distributed.global_state.client
