"""Errors of the folder of checkpoints, which one process meets and on which all act."""

from typing import NamedTuple

from gnp_scale.run import consensus
from gnp_scale.run.store_requests import may_pass
from gnp_scale.run.streams import one_line


class Problem(NamedTuple):
    """An error of some process."""

    text: str
    may_pass: bool
    """Whether all errors of this moment are of a store that does not answer: then a restart may help."""


def agree[T](error: Exception | None, value: T) -> tuple[Problem | None, list[T]]:
    """The problem of the lowest rank, None if no process has one; and the values of all processes."""
    text = None if error is None else one_line(error)
    first, found = consensus.agree(text, (value, error is None or may_pass(error)))
    problem = None if first is None else Problem(first, all(each_may_pass for _, each_may_pass in found))
    return problem, [value for value, _ in found]
