"""Settings of the documentation site, which `make docs` builds with Sphinx from the Markdown files where they are."""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

PARTS = {
    "Begin": ["docs/quickstart", "README", "docs/troubleshooting"],
    "Train": ["docs/method", "configs/README", "docs/data", "docs/augmentation", "docs/weights", "docs/planning"],
    "Judge": ["docs/evaluation", "docs/sharpness", "docs/sweeps", "docs/evidence", "docs/measurements"],
    "Run for days": [
        *("docs/launch", "docs/reliability", "docs/checkpoints", "docs/divergence", "docs/stores", "docs/goodput"),
    ],
    "Use a part": ["docs/other_loops", "docs/kernels"],
    "Look up": ["docs/api", "docs/design", "CONTRIBUTING", "CHANGELOG"],
}
"""The pages of each part of the navigation. Those that do not exist are left out; those that no list has come last."""

TITLES = {"README": "Overview"}

BELOW = {
    "docs/launch": ["launch/slurm/README", "launch/gke/README", "launch/tpu_vm/README", "launch/local/README"],
    "docs/kernels": ["kernels/README"],
    "docs/api": [
        *("docs/api/gnp", "docs/api/sharpness", "docs/api/kernels"),
        *("docs/api/config", "docs/api/recipe", "docs/api/training"),
    ],
    "docs/measurements": sorted(f"benchmarks/results/{file.stem}" for file in ROOT.glob("benchmarks/results/*.md"))[
        ::-1
    ],
}
"""Pages that another page lists at its end."""

project = "gnp_scale"
html_title = "gnp_scale"
root_doc = "docs/index"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
# Sphinx must not walk through environments, data and runs.
FOLDERS = ("benchmarks", "configs", "docs", "kernels", "launch")
exclude_patterns = [
    "docs/_build",
    *(entry.name for entry in ROOT.iterdir() if entry.is_dir() and entry.name not in FOLDERS),
]

html_theme = "furo"
html_extra_path = ["site"]
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_copyright = False

myst_heading_anchors = 6

default_role = "code"
# Formulas are no Python.
highlight_language = "none"
autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}


def setup(app: Sphinx) -> None:
    """Adds the navigation to the pages as they are read, and reads docstrings as they were written."""
    app.connect("source-read", _add_navigation)
    app.connect("autodoc-process-docstring", _read_docstring)


def _add_navigation(app: Sphinx, page: str, text: list[str]) -> None:
    if page == root_doc:
        known = {name for pages in (*PARTS.values(), *BELOW.values()) for name in pages} | {root_doc}
        parts = PARTS | {"More": sorted(app.env.found_docs - known)}
        text[0] += "".join(_tree(app, names, f":caption: {part}\n:hidden:\n") for part, names in parts.items())
    if page in BELOW:
        text[0] += _tree(app, BELOW[page], "")


def _tree(app: Sphinx, pages: list[str], options: str) -> str:
    """A list of the `pages` that exist, for the navigation and for the end of a page."""
    there = [page for page in pages if page in app.env.found_docs]
    lines = "\n".join(f"{TITLES[page]} </{page}>" if page in TITLES else f"/{page}" for page in there)
    return f"\n```{{toctree}}\n:maxdepth: 1\n{options}\n{lines}\n```\n" if there else ""


def _read_docstring(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Makes a docstring reStructuredText: a block after a colon is a formula, and bars are those of norms."""
    if lines[:1] and lines[0].startswith("Alias for field number"):
        lines.clear()
        return
    # The extension itself would take words before a colon for the type of an attribute.
    paragraphs, was_formula = str(GoogleDocstring(lines, Config())).split("\n\n"), False
    for i, paragraph in enumerate(paragraphs):
        is_formula = paragraph.startswith("    ") and i > 0 and (was_formula or paragraphs[i - 1].endswith(":"))
        if is_formula and not was_formula:
            paragraphs[i - 1] += ":"
        elif not is_formula and not paragraph.startswith(">>>"):
            paragraphs[i] = re.sub(r"(`[^`]*`)|\|", lambda match: match[1] or r"\|", paragraph)
        was_formula = is_formula
    lines[:] = "\n\n".join(paragraphs).split("\n")
