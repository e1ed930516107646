"""The sizes of a run's data set, on which the examples of every step depend: equal in all processes and all starts."""

import json
import socket
from collections.abc import Mapping

from gnp_scale.config import ConfigError
from gnp_scale.run.consensus import all_gather, broadcast
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import DATA_FILE
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.store import Folder

type Sizes = Mapping[str, int]
"""Numbers by what they count, such as `training images`."""


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


def keep_sizes(run_dir: Folder, sizes: Sizes) -> None:
    """Notes the sizes in a claimed `run_dir` at its first start, and compares later ones. Every process calls it.

    Raises:
        ConfigError: they have changed; every process raises.
    """
    problem = broadcast(_kept(run_dir, sizes) if is_main_process() else None)
    if problem is not None:
        raise ConfigError(problem)


def _kept(run_dir: Folder, sizes: Sizes) -> str | None:
    """The problem, if there is one."""
    file = run_dir / DATA_FILE
    try:
        if not file.exists():
            replace_file(file, json.dumps(dict(sizes)).encode())
            return None
        before = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return f"{file} cannot be used ({error}): make it readable and writable, or remove it"
    if before == dict(sizes):
        return None
    return (
        f"{run_dir} was trained on a data set with {_words(before, sizes)}, and now it has {_words(sizes, before)}, so "
        "each step would have other examples: restore the data set, or choose another --run-dir"
    )


def _words(sizes: Sizes, other: Sizes) -> str:
    """The sizes that differ from those of `other`."""
    return " and ".join(f"{number} {what}" for what, number in sizes.items() if other.get(what) != number)
