"""`gnp-scale models` and `gnp-scale recipes`, and the docstrings that the latter reads."""

import io
import sys

import pytest
from rich.console import Console
from small_networks import CONFIGS
from test_recipe_files import MINIMAL, write

from gnp_scale import recipe
from gnp_scale.catalogue import networks
from gnp_scale.catalogue.docstrings import FIELDS, parse
from gnp_scale.catalogue.recipes import as_markdown, as_table, find
from gnp_scale.cli import main
from gnp_scale.config import ConfigError
from gnp_scale.models import registry

GOOD = """A network, 3 epochs,
    on two lines.

    Paper: arXiv 1.
    Command: gnp-scale train x.py:f
        --gnp.r 0.1
    Hardware: a CPU.
    Batch: 8 in one group.
    Result: none, see http://a.b: there.
    Hours: unknown.
    Run: not run here.
    """


def test_a_docstring_has_a_summary_and_seven_fields():
    description = parse(GOOD)
    assert description.what == "A network, 3 epochs, on two lines."
    assert tuple(description.fields) == FIELDS
    assert description.fields["Command"] == "gnp-scale train x.py:f --gnp.r 0.1"
    assert description.fields["Result"] == "none, see http://a.b: there."


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Paper: arXiv 1.", "arXiv 1.", "begin with 'arXiv 1.': begin with Paper"),
        ("Hardware", "Hardwares", "the field Hardwares where Hardware belongs"),
        ("    Hours: unknown.\n", "", "the field Run where Hours belongs"),
        ("    Run: not run here.\n", "", "lacks Run"),
        ("Hours: unknown.", "Hours:", "lacks Hours"),
        ("Hours: unknown.", "Run: no.\n    Hours: unknown.", "the field Run where Hours belongs"),
        ("    Run: not run here.\n", "    Run: not run here.\n    Note: x.\n", "the field Note where nothing belongs"),
        ("    Run:", "\n    Run:", "3 paragraphs"),
        ("\n\n", "\n", "1 paragraphs"),
        (GOOD, "", "1 paragraphs"),
    ],
)
def test_any_other_docstring_is_refused_in_one_line(old, new, message):
    with pytest.raises(ConfigError, match=message) as error:
        parse(GOOD.replace(old, new))
    assert "\n" not in str(error.value)


def test_a_folder_of_other_recipes_is_listed_too(tmp_path, capsys, monkeypatch):
    """Without the fixed docstring, with an error, and with a name that hides the file."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    write(tmp_path, "own.py", MINIMAL.format(num_steps=3))
    write(
        tmp_path, "wrong.py", 'def run():\n    """Fails."""\n    raise RuntimeError("no")\ndef helper(x):\n    return x'
    )
    write(tmp_path, "_hidden.py", MINIMAL.format(num_steps=3))
    write(tmp_path, "good.py", MINIMAL.format(num_steps=3).replace("    return", f'    """{GOOD}"""\n    return'))
    assert main(["recipes", str(tmp_path)]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    lines = {name.rpartition("/")[2]: cells for name, *cells in rows}
    assert list(lines) == ["good.py:run", "own.py:run", "wrong.py:run", "wrong.py:helper"]
    assert lines["good.py:run"][:3] == ["A network, 3 epochs, on two lines.", "digits", "8 in one group."]
    assert lines["own.py:run"] == ["", "digits", "", "", "", ""]
    assert "RuntimeError: no" in lines["wrong.py:run"][0]
    assert "missing 1 required" in lines["wrong.py:helper"][0]


def test_each_line_of_a_pipe_is_a_recipe_and_a_terminal_wraps(capsys):
    assert main(["recipes", str(CONFIGS / "digits.py")]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    name, *cells = line.split("\t")
    assert name == f"{CONFIGS}/digits.py:quickstart"
    assert len(cells) == 6
    entries = find(CONFIGS / "cifar.py", CONFIGS / "cifar.py")
    for width in (60, 140):
        console = Console(width=width, record=True, file=io.StringIO())
        console.print(as_table(entries))
        assert max(map(len, console.export_text().splitlines())) <= width


def test_a_bar_does_not_end_a_cell_of_markdown(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    text = GOOD.replace("a CPU.", "a|b.")
    file = write(tmp_path, "bar.py", MINIMAL.format(num_steps=3).replace("    return", f'    """{text}"""\n    return'))
    page = as_markdown(find(file, file))
    assert [line.count("|") for line in page.splitlines() if line.startswith("|")] == [8, 8, 8]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["recipes", "no/such"], "no/such does not exist: give a recipe file, or a folder of them"),
        (["recipes", "--format", "html"], "there is no FORMAT html"),
        (["recipes", "configs/../pyproject.toml"], "is not Python"),
        (["models", "alexnet"], "no network has 'alexnet' in its name"),
        (["models", "--all"], "there is no option --all"),
    ],
)
def test_a_mistake_is_one_line(arguments, part, capsys):
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


@pytest.mark.slow
def test_models_have_published_sizes(capsys):
    """Parameters and multiply-adds of timm, in tests/test_models.py: CaiT at 384, the others at 224 or 32."""
    assert main(["models", "xs24", "mixer_b", "resnet20"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["network", "parameters", "multiply-adds", "image", "classes"]
    assert {row.split()[0]: row.split()[1:] for row in rows} == {
        "cait_xxs24": ["11,956,264", "2.523", "G", "224", "1000"],
        "cait_xs24": ["26,670,088", "19.241", "G", "384", "1000"],
        "resnet20": ["269,722", "0.037", "G", "32", "10"],
        "mixer_b": ["59,880,472", "12.602", "G", "224", "1000"],
        "resnet200": ["64,673,832", "14.435", "G", "224", "1000"],
    }


def test_every_network_has_a_published_size():
    sizes = {name: (networks.published(name).image_size, networks.published(name).config) for name in registry.NAMES}
    for name, (size, config) in sizes.items():
        family = registry.family_of(name)
        family.check_options(config)
        family.check_shapes(config, (size, size, 3))
    assert sizes["vit_h"][1].patch_size == 14
    assert sizes["wrn_28_10"][0] == 32


def test_the_recipes_of_this_project_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (recipe.shipped() / "configs" / "digits.py").is_file()
    assert recipe.load("configs/digits.py:quickstart").data.name == "digits"
