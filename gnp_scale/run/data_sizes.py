"""The sizes of a run's data set and the names of its classes, on which every step depends: equal in all starts."""

import json
import socket
from collections.abc import Mapping, Sequence

from gnp_scale.config import ConfigError
from gnp_scale.run.consensus import all_gather, broadcast
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import DATA_FILE
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.store import Folder
from gnp_scale.run.store_requests import may_pass, not_now

type Sizes = Mapping[str, int]
"""Numbers by what they count, such as `training images`."""
_NAMES = "class names"
_ADVICE = "restore the data set, or choose another --run-dir"


def check_sizes_agree(sizes: Sizes) -> None:
    """Confirms that all processes, which may read copies on different disks, have the same sizes.

    Raises:
        ConfigError: one of them differs from process 0; every process raises.
    """
    theirs = all_gather((dict(sizes), socket.gethostname()))
    first, main_host = theirs[0]
    for rank, (other, host) in enumerate(theirs):
        if other != first:
            raise ConfigError(
                f"process {rank} has {_words(other, first)} on {host}, but process 0 has {_words(first, other)} on "
                f"{main_host}: give all the same data set"
            )


def keep_sizes(run_dir: Folder, sizes: Sizes, class_names: Sequence[str] = ()) -> None:
    """Notes the sizes and the names of the classes, in the order of their labels, in a claimed `run_dir` at its first
    start, and compares later ones. Every process calls it.

    Raises:
        ConfigError: they have changed; every process raises.
    """
    problem = broadcast(_kept(run_dir, sizes, class_names) if is_main_process() else None)
    if problem is not None:
        raise ConfigError(problem)


def _kept(run_dir: Folder, sizes: Sizes, class_names: Sequence[str]) -> str | None:
    """The problem, if there is one."""
    file = run_dir / DATA_FILE
    noted = {_NAMES: list(class_names)} if class_names else {}
    try:
        if not file.exists():
            replace_file(file, json.dumps({**sizes, **noted}).encode())
            return None
        before = json.loads(file.read_text())
        # Earlier versions have not noted the names.
        names = list(before.pop(_NAMES, ()))
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        if may_pass(error):
            raise not_now(file, error) from error
        return f"{file} cannot be used ({error}): make it readable and writable, or remove it"
    if before != dict(sizes):
        return (
            f"{run_dir} was trained on a data set with {_words(before, sizes)}, and now it has "
            f"{_words(sizes, before)}, so each step would have other examples: {_ADVICE}"
        )
    other = [(label, *pair) for label, pair in enumerate(zip(names, class_names, strict=False)) if pair[0] != pair[1]]
    if not other:
        return None
    label, old, new = other[0]
    return f"{run_dir} was trained with label {label} for the class {old!r}, and now it is that of {new!r}: {_ADVICE}"


def _words(sizes: Sizes, other: Sizes) -> str:
    """The sizes that differ from those of `other`."""
    return " and ".join(f"{number} {what}" for what, number in sizes.items() if other.get(what) != number)
