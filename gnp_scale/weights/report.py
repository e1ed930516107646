"""What a file of weights has for a network, and whether the user allows the rest."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from itertools import groupby

from gnp_scale.config import ConfigError, check
from gnp_scale.run.files import replace_file
from gnp_scale.run.layout import WEIGHTS_FILE
from gnp_scale.run.messages import announce
from gnp_scale.run.processes import is_main_process
from gnp_scale.run.store import Folder
from gnp_scale.weights.files import OPTION

_MOST_NAMED = 4


@dataclass
class Report:
    """What a file has for a network: names of tensors."""

    file: str
    sha256: str
    used: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    """Those of the used ones that had another size."""
    replaced: list[str] = field(default_factory=list)
    """Of a head for another number of classes: the new one is random."""
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    reshaped: list[str] = field(default_factory=list)

    def line(self) -> str:
        """The report in one line."""
        parts = [f"initial parameters from {self.file} (SHA-256 {self.sha256[:12]}): {len(self.used)} tensors"]
        if self.replaced:
            parts.append(f"the head ({_some(self.replaced)}) is new, because the file has another number of classes")
        parts += [
            f"{words}: {_some(names)}" for words, names in (("resampled", self.resampled), *self._misfits) if names
        ]
        return "; ".join(parts)

    def record(self, run_dir: Folder) -> None:
        """Announces the report, and writes all of it into the folder of the run.

        Raises: ConfigError: the folder has the report of another file.
        """
        check_unchanged(run_dir, self.file, self.sha256)
        announce(self.line())
        if is_main_process():
            replace_file(run_dir / WEIGHTS_FILE, (json.dumps(asdict(self), indent=1) + "\n").encode())

    def check(self, model: str, allowed: Sequence[str]) -> None:
        """Checks that the patterns `allowed` cover all misfits, and that each covers one.

        Raises: ConfigError: they do not; the message has the flag that would.
        """
        names = [name for _, names in self._misfits for name in names]
        for pattern in allowed:
            covers = any(fnmatchcase(name, pattern) for name in names)
            check(covers, f"model.init_allow has {pattern}, which matches no misfit of {self.file}: leave it out")
        left = {name for name in names if not any(fnmatchcase(name, pattern) for pattern in allowed)}
        if not left:
            return
        misfits = [(words, [name for name in names if name in left]) for words, names in self._misfits]
        text = "; ".join(f"{words}: {_some(names)}" for words, names in misfits if names)
        more = sorted(left) if len(left) <= _MOST_NAMED else _patterns(left)
        raise ConfigError(
            f"{self.file} does not fit {model} ({text}): choose other options of the model or another file, or add "
            f"--model.init-allow {' '.join([*allowed, *more])} if that is meant"
        )

    @property
    def _misfits(self) -> tuple[tuple[str, list[str]], ...]:
        return ("missing", self.missing), ("extra", self.extra), ("of another shape", self.reshaped)


def check_unchanged(run_dir: Folder, file: str, sha256: str) -> None:
    """Checks that the run began with this file, if the folder has a report.

    Raises: ConfigError: it did not.
    """
    path = run_dir / WEIGHTS_FILE
    try:
        first = json.loads(path.read_text())["sha256"] if path.exists() else sha256
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): begin a new run") from error
    check(
        first == sha256,
        f"{OPTION} {file} is not the file with which the run began (SHA-256 {sha256[:12]}, not {str(first)[:12]}): "
        "put that one back, or begin a new run",
    )


def _patterns(names: Iterable[str]) -> list[str]:
    """Patterns, quoted for a shell, that cover `names`: by their first part where several share it.

    >>> _patterns(["head.weight", "head.bias", "cls_token"])
    ['cls_token', "'head.*'"]
    """
    patterns = []
    for _, group in groupby(sorted(names), lambda name: re.split(r"(?<=[./])", name, maxsplit=1)[0]):
        same = list(group)
        patterns.append(same[0] if len(same) == 1 else f"'{re.split(r'(?<=[./])', same[0], maxsplit=1)[0]}*'")
    return patterns


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"{', '.join(names[:_MOST_NAMED])}{more}"
