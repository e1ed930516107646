"""Documentation is true: Python blocks and examples of docstrings run; links lead to what exists, as do named tests."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

from gnp_scale import recipe
from gnp_scale.config import Config

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "kernels" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PACKAGES = (ROOT / "gnp_scale", ROOT / "kernels" / "gnp_kernels")
FILES_WITH_EXAMPLES = [
    path for package in PACKAGES for path in sorted(package.rglob("*.py")) if ">>>" in path.read_text()
]
LINKING = [
    *ROOT.glob("*.md"),
    *(
        path
        for folder in ("docs", "configs", "kernels", "launch", "benchmarks")
        for path in ROOT.glob(f"{folder}/**/*.md")
    ),
]
# The changelog and dated reports also name what there was.
COMMANDING = [page for page in LINKING if page.name != "CHANGELOG.md" and "results" not in page.parts]
COMMANDS = {
    name
    for file in (ROOT / "gnp_scale" / "commands").glob("*.py")
    for name in re.findall(r'commands\.add_parser\(\s*"(\w+)"', file.read_text())
}
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page):
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        # The empty lines make the line numbers of a traceback those of the page.
        yield pytest.param(page, "\n" * line + match[1], id=f"{page.relative_to(ROOT)}:{line + 1}")


@pytest.mark.parametrize(("page", "code"), [block for page in PAGES for block in _blocks(page)])
def test_block_of_a_page_runs(page, code):
    """Copied code works without changes."""
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", FILES_WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_of_docstrings(path):
    """The results in docstrings are those of the code."""
    root = next(package.parent for package in PACKAGES if path.is_relative_to(package))
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0


def _anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return {f"{slug}-{n}" if n else slug for i, slug in enumerate(slugs) for n in [slugs[:i].count(slug)]}


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page):
    """On GitHub as well, where nothing checks them."""
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if "://" in target:
            continue
        other = page.parent / file if file else page
        assert other.exists(), target
        assert not anchor or anchor in _anchors(other), target


@pytest.mark.parametrize("page", COMMANDING, ids=lambda page: str(page.relative_to(ROOT)))
def test_recipes_options_and_commands_of_a_page_exist(page):
    """What a reader types does not fail because a name has changed."""
    text = page.read_text()
    for file, function in re.findall(r"(configs/[a-z]\w*\.py):([a-z]\w*)", text):
        recipe.load(f"{ROOT / file}:{function}")
    options = {name.replace("-", "_") for name in re.findall(r"--([a-z]+\.[a-z][\w-]*)", text)}
    assert options <= {"section.key", *recipe.flatten(Config())}
    assert set(re.findall(r"(?:^|`)gnp-scale ([a-z]+)", text, flags=re.MULTILINE)) <= COMMANDS


def cited_tests():
    """(file, words) of each test that docs/reliability.md names."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    for file, words in re.findall(r"`(?:tests/)?(test_\w+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", text):
        yield from ((file, word) for word in re.findall(r"`(\w+)`", words) or [""])


@pytest.mark.parametrize(("file", "words"), sorted(set(cited_tests())))
def test_a_test_that_the_list_of_disturbances_names_is_there(file, words):
    names = re.findall(r"^def (test_\w+)", (ROOT / "tests" / file).read_text(), flags=re.MULTILINE)
    assert any(words in name for name in names), f"{file} has no test with {words!r} in its name"
