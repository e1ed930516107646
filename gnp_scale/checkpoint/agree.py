"""Decisions about checkpoints that every process takes alike."""

from gnp_scale.run.consensus import from_all, from_main

__all__ = ["all_true", "first_problem", "from_main"]


def first_problem(problem: str | None) -> str | None:
    """The problem of the first process that has one, with its rank where there are several; None where none has."""
    problems = from_all(problem)
    if len(problems) == 1:
        return problem
    return next((f"{found}, in process {rank}" for rank, found in enumerate(problems) if found is not None), None)


def all_true(condition: bool) -> bool:
    """Whether `condition` holds in every process."""
    return all(from_all(condition))
