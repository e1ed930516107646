"""`make` finds a Python that can make the environment, and says which; if there is none, it says what to type.

The interpreters here are shell scripts that answer the search: their version, then their missing modules.
"""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "requirements" / "find_python.sh"
BROKEN = "exit 127"
GOOD = "echo 3.12.4"


def find(folder, programs, named=None):
    """The output and messages of the search, with `programs` on an otherwise empty PATH."""
    for name, body in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n".replace("FOLDER", str(folder)))
        (folder / name).chmod(0o755)
    command = ["/bin/sh", str(SCRIPT), *([] if named is None else [named])]
    environment = {"PATH": str(folder), "HOME": str(folder / "home")}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


TAKEN = {
    "the first": ({"python3": GOOD, "python3.13": "echo 3.13.0"}, None, "python3", "Taking Python 3.12.4"),
    "a newer one behind an old one": (
        {"python3": "echo 3.11.2", "python3.13": "echo 3.13.0"},
        None,
        "python3.13",
        "Taking Python 3.13.0",
    ),
    "a whole one behind one without ensurepip": (
        {"python3": "echo 3.12.3 ensurepip", "python3.14": "echo 3.14.0rc1"},
        None,
        "python3.14",
        "Taking Python 3.14.0",
    ),
    "one that runs": ({"python3": BROKEN, "python3.12": GOOD}, None, "python3.12", "Taking Python 3.12.4"),
    "that of uv": (
        {"python3": "echo 3.11.2", "uv": 'echo FOLDER/"$*"', "python find --system >=3.12": GOOD},
        None,
        "python find --system >=3.12",
        "Taking Python 3.12.4",
    ),
    "the named one": ({"python3": GOOD, "mine": "echo 3.13.1"}, "mine", "mine", "Taking Python 3.13.1"),
    "no name": ({"python3": GOOD}, "", "python3", "Taking Python 3.12.4"),
}


@pytest.mark.parametrize(("programs", "named", "taken", "words"), TAKEN.values(), ids=TAKEN)
def test_the_first_that_will_do_is_taken_and_named(programs, named, taken, words, tmp_path):
    found = find(tmp_path, programs, named)
    assert found.returncode == 0
    assert found.stdout == f"{tmp_path / taken}\n"
    assert words in found.stderr
    assert found.stderr.count("\n") == 1


REFUSED = {
    "nothing there": ({}, None, ["python3: not found", "python3.14: not found", "  uv: not found"]),
    "too old": ({"python3": "echo 3.11.2"}, None, ["is Python 3.11.2: too old"]),
    "very old": ({"python3": "echo 2.7.18"}, None, ["is Python 2.7.18: too old"]),
    "without ensurepip": (
        {"python3": "echo 3.12.3 ensurepip"},
        None,
        ["is Python 3.12.3, without ensurepip: apt install python3.12-venv"],
    ),
    "without both": ({"python3": "echo 3.13.5 venv ensurepip"}, None, ["is Python 3.13.5, without venv ensurepip"]),
    "does not run": ({"python3.13": BROKEN}, None, ["python3.13) does not run"]),
    "a uv without Python": ({"uv": "exit 2"}, None, ["uv has no such Python"]),
    "the named one is too old": (
        {"python3": GOOD, "mine": "echo 3.10.1"},
        "mine",
        ["is Python 3.10.1: too old", "PYTHON is set to mine"],
    ),
    "the named one is not there": ({"python3": GOOD}, "mine", ["mine: not found"]),
}


@pytest.mark.parametrize(("programs", "named", "parts"), REFUSED.values(), ids=REFUSED)
def test_where_there_is_none_it_says_why_and_what_to_type(programs, named, parts, tmp_path):
    found = find(tmp_path, programs, named)
    assert (found.returncode, found.stdout) == (1, "")
    to_type = ["apt install python3-venv make", "pipx install uv && ~/.local/bin/uv python install 3.12"]
    for part in [*parts, *to_type, "make PYTHON="]:
        assert part in found.stderr


def test_a_real_python_is_asked_what_it_has(tmp_path):
    version = platform.python_version()
    assert f"Taking Python {version}: {sys.executable}" in find(tmp_path, {}, sys.executable).stderr
    (tmp_path / "ensurepip.py").write_text("raise ImportError")
    without = {"python3": f'PYTHONPATH=FOLDER exec {sys.executable} "$@"'}
    assert f"is Python {version}, without ensurepip:" in find(tmp_path, without).stderr
