"""The documentation site: `make docs` refuses what is broken, and its pages need no network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
for package in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(package, reason="make docs installs it")
pytestmark = pytest.mark.slow


def build(root, out):
    """Builds the site of `root` with the options of the Makefile."""
    options = re.search(r"-m sphinx (.+) --conf-dir docs \. docs/_build", (ROOT / "Makefile").read_text())[1].split()
    command = [sys.executable, "-m", "sphinx", *options, "--conf-dir", "docs", ".", str(out)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    result = build(ROOT, out)
    assert result.returncode == 0, result.stderr
    return out


def small_site(root, text):
    """A site of this project's settings with one page of its own."""
    (root / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "conf.py", root / "docs")
    shutil.copytree(ROOT / "docs" / "site", root / "docs" / "site")
    (root / "docs" / "index.md").write_text("# Index\n")
    (root / "environment").mkdir()
    (root / "environment" / "README.md").write_text("[of another project](gone.md)\n")
    (root / "docs" / "page.md").write_text(f"# Page\n\n## A part\n\n{text}\n")
    return build(root, root / "out")


@pytest.mark.parametrize(
    "text",
    [
        "[gone](gone.md)",
        "[gone](index.md#gone)",
        "[gone](#gone)",
        "![gone](gone.png)",
        "```{eval-rst}\n.. automodule:: gnp_scale.gone\n```",
    ],
)
def test_what_is_broken_is_an_error(text, tmp_path):
    result = small_site(tmp_path, text)
    assert result.returncode != 0
    assert "page.md" in result.stderr or "gone" in result.stderr


def test_what_is_whole_is_none(tmp_path):
    """A page that no list has is in the navigation all the same; other folders do not count."""
    result = small_site(tmp_path, "[a part](#a-part) and [index](index.md#index)")
    assert result.returncode == 0, result.stderr
    assert 'href="page.html"' in (tmp_path / "out" / "docs" / "index.html").read_text()


def test_pages_load_nothing_from_the_network(site):
    """They can be read on a machine without one."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    loaded = re.compile(r"<(?:script|img|link|iframe|source)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^>]*>")
    assert {page.name: found for page in pages if (found := loaded.findall(page.read_text()))} == {}
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text()), sheet


def test_pages_of_the_interface(site):
    """Public names with their docstrings, whose formulas keep their lines; no private names."""
    page = (site / "docs" / "api" / "gnp.html").read_text()
    for name in ("Gnp", "value_and_grad", "penalize", "window"):
        assert f'id="gnp_scale.gnp.{name}"' in page
    assert "<pre>" in page
    assert 'id="gnp_scale.gnp._' not in page
    assert 'id="gnp_scale.config.GnpConfig.r"' in (site / "docs" / "api" / "config.html").read_text()


def test_the_front_page_leads_to_every_part(site):
    assert "docs/index.html" in (site / "index.html").read_text()
    front = (site / "docs" / "index.html").read_text()
    for page in (
        "quickstart",
        "troubleshooting",
        "method",
        "data",
        "launch",
        "reliability",
        "kernels",
        "stores",
        "api",
    ):
        assert f'href="{page}.html"' in front
    assert 'href="../CHANGELOG.html"' in front
    assert 'href="../configs/README.html"' in front
