"""Rules about the code itself: imports point one way, one file has the axis names, and call chains are short."""

import ast
import traceback
from dataclasses import replace
from pathlib import Path

import gnp_kernels
import pytest
from gnp_kernels.blend_update import reference

import gnp_scale
from gnp_scale.config import Config, ModelConfig
from gnp_scale.gnp import StepKind
from gnp_scale.models import layers
from gnp_scale.training.setup import Task
from gnp_scale.training.step import make_train_step
from gnp_scale.training.update import make_fused_update

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
    {"weights", "resilience"},
    {"monitoring"},
    {"training"},
    {"checkpoint"},
    {"steps"},
    {"loop", "bench", "evaluation"},
    {"chaos", "catalogue", "sweeps"},
    {"sharpness", "planning"},
    {"evidence"},
    {"commands"},
    {"cli"},
)
LAYER_OF = {module: number for number, layer in enumerate(LAYERS) for module in layer}
FILES = sorted(ROOT.rglob("*.py"))
ENTRY_POINTS = (ROOT / "chaos" / "worker.py",)
"""Modules that are run as scripts and never imported."""
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


def test_the_design_names_every_room_and_its_files():
    design = (ROOT.parent / "docs" / "design.md").read_text()
    rooms = [path for path in FILES if path.parent != ROOT]
    listed = [path for path in rooms if path.relative_to(ROOT).parts[0] not in ("data", "models")]
    names = {path.name for path in listed} - {"__init__.py"} | {f"{path.parent.name}/" for path in listed}
    assert not [name for name in names if f"`{name}`" not in design]


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


def frames_to(calls, monkeypatch, module, name, is_it=lambda *args: True):
    """The functions of the project, from the outermost one, that run while `calls()` first calls `module.name`."""
    found, real = [], getattr(module, name)

    def record(*args, **kwargs):
        if not found and is_it(*args):
            stack = traceback.extract_stack()[:-1]
            found.extend(f"{frame.filename}:{frame.name}" for frame in stack if is_own(Path(frame.filename)))
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, record)
    calls()
    return found


def is_own(path):
    return path.is_relative_to(ROOT) or path.is_relative_to(Path(gnp_kernels.__file__).parent)


@pytest.fixture
def task(set_mesh):
    set_mesh()
    return Task.of(Config(model=ModelConfig("vit_mu", patch_size=2)))


def lower(task):
    make_train_step(task).lower(task.abstract_state(), task.abstract_batch(), kind=StepKind.FULL)


def test_a_reader_reaches_the_matmul_in_ten_frames(task, monkeypatch):
    """Ten with `loop.train`, which traces the step; the first is that of the queries, keys and values."""
    frames = frames_to(lambda: lower(task), monkeypatch, layers.jnp, "einsum", lambda formula, *_: "thk" in formula)
    assert 0 < len(frames) <= 9, frames


def test_a_reader_reaches_the_arithmetic_of_the_update_in_eight_frames(task, monkeypatch):
    fused = replace(task, update=make_fused_update(task.config, "xla"))
    frames = frames_to(lambda: lower(fused), monkeypatch, reference, "update_leaf")
    assert 0 < len(frames) <= 8, frames
