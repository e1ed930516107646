"""A real disk of a few megabytes, which a test fills and frees."""

import os
import subprocess

import pytest

_NUM_BYTES = 1 << 21


class SmallDisk:
    """A mounted file system; `path` is its root."""

    def __init__(self, path):
        self.path = path
        self._filler = path / "filler"

    def fill(self):
        """Fills the disk: no block is free."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 512)
            except OSError:
                return

    def free(self):
        """Frees the space that `fill` took."""
        self._filler.unlink()


def mounted(path, num_bytes=_NUM_BYTES):
    """Mounts a disk of `num_bytes` at `path`, until the generator is closed; skips where that is not permitted."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={num_bytes}", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system is not permitted here")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def disk(tmp_path):
    yield from mounted(tmp_path / "disk")
