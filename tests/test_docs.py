"""Documentation runs: every python block of the Markdown pages, and every example in a docstring."""

import doctest
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "kernels" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PACKAGES = (ROOT / "gnp_scale", ROOT / "kernels" / "gnp_kernels")
FILES_WITH_EXAMPLES = [
    path for package in PACKAGES for path in sorted(package.rglob("*.py")) if ">>>" in path.read_text()
]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _blocks(page):
    text = page.read_text()
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start(1))
        # The empty lines give a traceback the line numbers of the page.
        yield pytest.param(page, "\n" * line + match[1], id=f"{page.relative_to(ROOT)}:{line + 1}")


@pytest.mark.parametrize(("page", "code"), [block for page in PAGES for block in _blocks(page)])
def test_block_of_a_page_runs(page, code):
    """What a reader copies works as it stands."""
    exec(compile(code, str(page), "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("path", FILES_WITH_EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_of_docstrings(path):
    """The results that docstrings print are those of the code."""
    root = next(package.parent for package in PACKAGES if path.is_relative_to(package))
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
