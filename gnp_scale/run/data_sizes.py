"""What every step depends on is equal in all processes and at all starts: sizes of the data set, names of its classes.

Of the images, those of different processes are compared, a few of each split.
"""

import hashlib
import json
import socket
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from gnp_scale.config import ConfigError
from gnp_scale.run.consensus import all_gather, broadcast
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import DATA_FILE
from gnp_scale.run.processes import coordination, is_main_process
from gnp_scale.run.store import Folder
from gnp_scale.run.store_requests import may_pass, not_now

type Sizes = Mapping[str, int]
"""Numbers by what they count, such as `training images`."""
type Fingerprints = Mapping[str, Sequence[int | None]]
"""By what they are of, such as `training images`, numbers of some examples; None for one that cannot be used."""
_NAMES = "class names"
_ADVICE = "restore the data set, or choose another --run-dir"


class _Copy(NamedTuple):
    """The data set that a process reads."""

    sizes: Sizes
    names: str
    """A digest of them: there may be many."""
    images: Fingerprints
    host: str


def check_data_agree(sizes: Sizes, class_names: Sequence[str], fingerprints: Callable[[], Fingerprints]) -> None:
    """Confirms that all processes, which may read copies on different disks, have the same data set: its sizes, the
    classes of its labels, and some of its images. A single process asks for no fingerprints.

    Raises:
        ConfigError: one of them differs from process 0; every process raises.
    """
    _, rank, num_processes = coordination()
    if num_processes == 1:
        return
    digest = hashlib.sha256(json.dumps(list(class_names)).encode()).hexdigest()
    copies = [_Copy(*copy) for copy in all_gather(_Copy(dict(sizes), digest, fingerprints(), socket.gethostname()))]
    main = copies[0]
    for other_rank, copy in enumerate(copies):
        if copy.sizes == main.sizes and copy.names != main.names:
            names = all_gather(list(class_names) if rank in (0, other_rank) else [])
            label, mine, mains = _first_difference(names[other_rank], names[0])
            what = f"{mine!r} as class {label}", f"{mains!r}"
        else:
            what = _other_sizes_or_images(copy, main)
        if what is not None:
            raise ConfigError(
                f"process {other_rank} has {what[0]} on {copy.host}, but process 0 has {what[1]} on {main.host}: give "
                "all the same data set"
            )


def _other_sizes_or_images(copy: _Copy, main: _Copy) -> tuple[str, str] | None:
    """What differs, in words: of a copy, and of that of the main process."""
    if copy.sizes != main.sizes:
        return _words(copy.sizes, main.sizes), _words(main.sizes, copy.sizes)
    for what, found in copy.images.items():
        pairs = zip(found, main.images[what], strict=True)
        if any(one != other for one, other in pairs if None not in (one, other)):
            return f"some {what}", "others under the same numbers"
    return None


def _first_difference(names: Sequence[str], others: Sequence[str]) -> tuple[int, str, str]:
    pairs = enumerate(zip_longest(names, others, fillvalue=""))
    return next((label, *pair) for label, pair in pairs if pair[0] != pair[1])


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
    if not names or not class_names or names == list(class_names):
        return None
    label, old, new = _first_difference(names, class_names)
    return f"{run_dir} was trained with label {label} for the class {old!r}, and now it is that of {new!r}: {_ADVICE}"


def _words(sizes: Sizes, other: Sizes) -> str:
    """The sizes that differ from those of `other`."""
    return " and ".join(f"{number} {what}" for what, number in sizes.items() if other.get(what) != number)
