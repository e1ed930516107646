"""Rules about the code itself: imports point one way, and axis names stand in one file."""

import ast
from pathlib import Path

import pytest

import gnp_scale

ROOT = Path(gnp_scale.__file__).parent
# A room or file imports only from rows above its own, or from its own room.
LAYERS = (
    {"checks"},
    {"config", "arguments"},
    {"exit_codes"},
    {"recipe"},
    {"run"},
    {"mesh", "losses"},
    {"gnp", "data", "models"},
    {"resilience"},
    {"monitoring"},
    {"training"},
    {"checkpoint"},
    {"loop", "bench"},
    {"chaos"},
    {"cli"},
)
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}
FILES = sorted(ROOT.rglob("*.py"))
ENTRY_POINTS = (ROOT / "chaos" / "worker.py",)
"""Modules that are run and that nothing imports."""
MOST_FLAT = 14


def _module(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "gnp_scale":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gnp_scale."):
            found.add(node.module.split(".")[1])
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    module = _module(path)
    if module == "__init__" or path in ENTRY_POINTS:
        return
    for imported in _imports(path) - {module, "__version__", "PROCESS_START_S"}:
        assert LAYER_OF[imported] < LAYER_OF[module], f"{module} must not import {imported}"


def test_a_reader_sees_few_files_before_the_rooms():
    assert len(list(ROOT.glob("*.py"))) <= MOST_FLAT


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_axis_names_stand_in_mesh_only(path):
    if _module(path) in ("mesh", "config"):
        return
    strings = {
        node.value
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert not strings & {"replica", "fsdp", "tensor"}
