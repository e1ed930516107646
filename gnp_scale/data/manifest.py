"""What tells about a prepared data set: the manifest, for `gnp-scale data verify`, and the journal while it is made."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from gnp_scale.config import check
from gnp_scale.data.encode import Encoding
from gnp_scale.data.formats import DamagedFileError
from gnp_scale.run.files import replace_file, try_lock
from gnp_scale.run.store import Folder
from gnp_scale.run.store_requests import StoreError

MANIFEST_FILE = "manifest.json"
JOURNAL_FILE = "prepare.jsonl"
"""Is there until a data set is prepared."""
VERSION = 1


@dataclass(frozen=True)
class Shard:
    """A file of a split."""

    file: str
    num_examples: int
    num_bytes: int
    sha256: str
    class_counts: Mapping[str, int]
    """Examples of each class that it has, by label."""


@dataclass(frozen=True)
class Manifest:
    """A prepared data set; `source` is the form from which it was made."""

    source: str
    class_names: tuple[str, ...]
    splits: Mapping[str, tuple[Shard, ...]]
    encoding: Encoding
    """How images were changed."""
    digests: Mapping[str, str]
    """By split: of the records from which it was made; empty in manifests of earlier versions."""

    @classmethod
    def read(cls, folder: Folder) -> Self:
        """The manifest in `folder`.

        Raises:
            FileNotFoundError: there is none.
            DamagedFileError: it cannot be read.
            StoreError: the store that has it does not answer.
        """
        try:
            stored = json.loads((folder / MANIFEST_FILE).read_text())
            splits = {name: tuple(Shard(**shard) for shard in shards) for name, shards in stored["splits"].items()}
            encoding = Encoding(stored.get("shorter_side"), stored.get("restart_markers", False))
            return cls(stored["source"], tuple(stored["class_names"]), splits, encoding, stored.get("digests", {}))
        except (FileNotFoundError, StoreError):
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedFileError(
                f"{folder / MANIFEST_FILE} is not one of gnp-scale data prepare ({error}): restore it, or rename it if "
                "it is of another program"
            ) from error

    def write(self, folder: Path) -> None:
        """Writes the manifest; after a kill it is absent or whole."""
        splits = {name: [asdict(shard) for shard in shards] for name, shards in self.splits.items()}
        stored = {"version": VERSION, "source": self.source, "class_names": self.class_names, "splits": splits}
        stored |= {"digests": self.digests, **self.encoding.named()}
        replace_file(folder / MANIFEST_FILE, json.dumps(stored, indent=1).encode())


@contextlib.contextmanager
def locked_journal(out: Path) -> Iterator[None]:
    """Opens or makes the journal in `out`; inside the block no other process writes there.

    Raises:
        ConfigError: another process does, or `out` holds something else.
    """
    names = sorted(path.name for path in out.iterdir())
    check(not names or JOURNAL_FILE in names, f"{out} is not empty ({', '.join(names[:1])}): give a new folder as OUT")
    # One that has just been removed is not made again: its data set is finished.
    with (out / JOURNAL_FILE).open("r+" if names else "a") as journal:
        check(
            try_lock(journal.fileno()),
            f"{out} is being written by another gnp-scale data prepare: wait for its end, or give another folder",
        )
        yield
