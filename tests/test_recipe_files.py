"""A recipe file may be anywhere and may be any Python file; its errors are one line."""

import json
import sys

import pytest

from gnp_scale import recipe
from gnp_scale.config import ConfigError

MINIMAL = """
from gnp_scale.config import Config, TrainConfig

def run():
    return Config(train=TrainConfig(num_steps={num_steps}))
"""


@pytest.fixture(autouse=True)
def same_modules(monkeypatch):
    """Removes additions of recipes to the path and the modules after the test."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())


def write(folder, name, text):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def num_steps(name):
    return recipe.load(name).train.num_steps


def test_it_imports_a_module_of_its_folder_also_late(tmp_path):
    write(tmp_path, "sibling_of_recipe.py", "num_steps = 7")
    early = "from sibling_of_recipe import num_steps\n" + MINIMAL
    late = MINIMAL.replace("    return", "    from sibling_of_recipe import num_steps\n    return")
    for name, text in {"early.py": early, "late.py": late}.items():
        assert num_steps(f"{write(tmp_path, name, text.format(num_steps='num_steps'))}:run") == 7


def test_it_defines_a_dataclass_with_postponed_annotations(tmp_path):
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom typing import ClassVar\n"
        "@dataclass\nclass Sizes:\n    unit: ClassVar[int] = 1\n    num_steps: int = 9\n"
    )
    file = write(tmp_path, "sizes.py", text + MINIMAL.format(num_steps="Sizes().num_steps"))
    assert num_steps(f"{file}:run") == 9


@pytest.mark.parametrize("name", ["a:b.py", "with space.py", "grüße.py", "a.b.py", "1st.py"])
def test_any_name_of_a_file_will_do(name, tmp_path):
    assert num_steps(f"{write(tmp_path, name, MINIMAL.format(num_steps=5))}:run") == 5


def test_relative_paths_links_and_home_folders(tmp_path, monkeypatch):
    write(tmp_path, "real/helper_of_link.py", "num_steps = 3")
    text = "from helper_of_link import num_steps\n" + MINIMAL.format(num_steps="num_steps")
    file = write(tmp_path, "real/recipe.py", text)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link.py").symlink_to(file)
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("../real/recipe.py", "link.py", "~/real/recipe.py"):
        assert num_steps(f"{name}:run") == 3


def test_the_name_of_a_module_of_python_hides_nothing(tmp_path):
    """A module next to a recipe does not shadow an installed module of the same name either."""
    write(tmp_path, "colorsys.py", "raise RuntimeError('not the one of Python')")
    text = "import colorsys\nassert colorsys.rgb_to_hsv\n" + MINIMAL.format(num_steps=4)
    file = write(tmp_path, "json.py", text)
    assert num_steps(f"{file}:run") == 4
    assert sys.modules["json"] is json


def test_two_of_one_name_are_two(tmp_path):
    files = [write(tmp_path / str(n), "same.py", MINIMAL.format(num_steps=n)) for n in (1, 2)]
    assert [num_steps(f"{file}:run") for file in [*files, files[0]]] == [1, 2, 1]


def test_only_its_own_functions_are_recipes(tmp_path):
    write(tmp_path, "base_of_others.py", MINIMAL.format(num_steps=1))
    file = write(tmp_path, "own.py", "from base_of_others import run\ndef mine():\n    return run()\n")
    assert list(recipe.functions(file)) == ["mine"]
    assert num_steps(f"{file}:mine") == 1


def test_a_decorated_function_is_a_recipe(tmp_path):
    text = "import functools\n" + MINIMAL.format(num_steps=3).replace("def run", "@functools.cache\ndef run")
    file = write(tmp_path, "cached.py", text)
    assert list(recipe.functions(file)) == ["run"]
    assert num_steps(f"{file}:run") == 3


def test_it_may_print(tmp_path, capsys):
    file = write(tmp_path, "loud.py", "print('hello')\n" + MINIMAL.format(num_steps=1))
    assert num_steps(f"{file}:run") == 1
    assert capsys.readouterr().out == "hello\n"


WRONG = {
    "imports what is not there": ("import no_such_module_of_test", r"in line 1: ModuleNotFoundError"),
    "is no Python": ("def run(:", r"SyntaxError"),
    "is no text": ("\udcff", r"SyntaxError"),
    "reads arguments": (
        "import argparse\ndef run():\n    argparse.ArgumentParser().parse_args(['--x'])",
        r"fails in line 3: SystemExit: 2",
    ),
    "ends the process": ("raise SystemExit('no')", r"fails to load in line 1: SystemExit: no"),
    "raises lines": ("def run():\n    raise ValueError('a\\nb')", r"fails in line 2: ValueError: a b$"),
    "needs arguments": ("def run(size): pass", r"TypeError: run\(\) missing 1"),
    "returns nothing": ("def run(): pass", r"returned a NoneType"),
    "has a value out of range": (
        "from gnp_scale.config import TrainConfig\ndef run():\n    TrainConfig(num_steps=0)",
        r"^train.num_steps is 0: it must be at least 1$",
    ),
}


@pytest.mark.parametrize(("text", "part"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_line(text, part, tmp_path):
    file = tmp_path / "wrong.py"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=part) as error:
        recipe.load(f"{file}:run")
    assert "\n" not in str(error.value)


def test_a_file_of_another_kind_is_named(tmp_path):
    file = write(tmp_path, "notes.txt", "")
    with pytest.raises(ConfigError, match="is not Python"):
        recipe.load(f"{file}:run")
