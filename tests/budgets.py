"""Plans real recipes for clusters that are not there, and writes what their steps take: see `COMMAND`.

A row whose compiler is not installed is left as it is.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

from gnp_scale import recipe
from gnp_scale.catalogue import recipes
from gnp_scale.config import GnpConfig, MeshConfig
from gnp_scale.gnp import StepKind
from gnp_scale.mesh import make_mesh
from gnp_scale.planning import absent_data
from gnp_scale.planning.compiled import count_kinds, flops_of, make_task
from gnp_scale.planning.hardware import CHIPS, missing_compiler

ROOT = Path(__file__).parent.parent
FILE = ROOT / "tests" / "golden" / "budgets.json"
COMMAND = "python tests/budgets.py"
FLOPS_FILE = ROOT / "tests" / "golden" / "flops.json"
FLOPS_COMMAND = f"{COMMAND} flops"
VIT_S, VIT_B = (f"configs/imagenet_no_aug.py:vit_{size}16_gnp" for size in "sb")
ALLOWED = 1.02
"""How many times its budget a quantity may take."""


@dataclass(frozen=True)
class Row:
    """A recipe on a cluster; its penalised and its plain step are compiled."""

    recipe: str
    topology: str
    num_slices: int = 1
    flags: str = ""
    is_long: bool = True

    @property
    def missing(self) -> str | None:
        """The compiler that is not installed."""
        missing = missing_compiler(CHIPS[self.topology.partition(":")[0]])
        return missing and f"needs the compiler for {self.topology}: make {missing}"

    @property
    def is_gpu(self) -> bool:
        """Whether the cluster is of GPUs."""
        return self.topology.startswith("h")


_GROUPS = "--mesh.replica 2 --gnp.perturb-groups 2"
_SMALL = "--model.depth 1 --data.image-size 32 --data.batch-size 64"
ROWS = {
    "small ViT-S/16 in float32 and 2 groups, 2 x v5e-4": Row(
        VIT_S, "v5e:2x2", 2, f"{_GROUPS} {_SMALL} --model.dtype float32", is_long=False
    ),
    "small ViT-S/16 in 2 groups, 2 x v5e-4": Row(VIT_S, "v5e:2x2", 2, f"{_GROUPS} {_SMALL}"),
    "ViT-S/16, v5e-256": Row(VIT_S, "v5e:16x16", flags="--gnp.perturb-groups 1"),
    "ViT-S/16, v5p:8x8x8": Row(VIT_S, "v5p:8x8x8", flags="--gnp.perturb-groups 1"),
    "ViT-S/16, v6e-256": Row(VIT_S, "v6e:16x16", flags="--gnp.perturb-groups 1"),
    "ViT-S/16 in 2 groups, 2 x v5e-256": Row(VIT_S, "v5e:16x16", 2, _GROUPS),
    "ViT-B/16, 8 H100": Row(VIT_B, "h100:8x1"),
    "ViT-B/16 in 64 groups, 64 H100": Row(VIT_B, "h100:8x8", flags="--mesh.replica 64 --mesh.fsdp 1"),
}

_SLICES = {
    **dict.fromkeys(("cifar", "cifar100", "digits", "fashion_mnist", "grocery", "imagenet_gnp"), ("v5e:2x2", "")),
    **dict.fromkeys(("finetune", "imagenet_modern"), ("v5e:4x4", "")),
    "imagenet": ("v5e:4x8", ""),
    "imagenet_sam": ("v5e:4x8", "--mesh.replica 32 --mesh.fsdp 1"),
    **dict.fromkeys(("imagenet_no_aug", "imagenet_no_aug_mixer"), ("v5e:8x8", "--mesh.replica 64 --mesh.fsdp 1")),
    "scale": ("v5p:4x8x8", "--mesh.replica 4"),
}
"""By file of recipes, a slice over which their batches and groups divide, and the mesh there."""
_LARGER_SLICES = {"configs/imagenet_modern.py:convnext_b": ("v5e:8x8", "")}
"""Of recipes that need more memory than others of their file."""


def _of_recipe(name: str) -> Row:
    topology, flags = _LARGER_SLICES.get(name) or _SLICES[Path(name.split(":")[0]).stem]
    return Row(name, topology, flags=flags)


RECIPES = {entry.name: _of_recipe(entry.name) for entry in recipes.find(ROOT / "configs", Path("configs"))}
"""A row for each recipe as it is. The file has budgets of those that were measured."""


@dataclass(frozen=True)
class Goal:
    """A bound of a quantity of the penalised step, as a multiple of the plain one."""

    row: str
    quantity: str
    most_times_plain: float


GOALS = [Goal(name, "FLOPs", 2.005) for name in ROWS]
GOALS += [Goal(name, "slow network, bytes", 1.0) for name in ROWS if "groups" in name]


def worse(found: dict[str, dict[str, float]], golden: dict[str, dict[str, float]]) -> list[str]:
    """Words for each quantity that is above its budget."""
    return [
        f"{quantity} of the {step} step are {found[step][quantity]:,}, and were {budget:,}"
        for step, budgets in golden.items()
        for quantity, budget in budgets.items()
        if found[step][quantity] > ALLOWED * budget
    ]


def measure(row: Row) -> dict[str, dict[str, float]]:
    """What the steps of a row take on each chip, by quantity."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.json"
        command = [sys.executable, "-m", "gnp_scale.cli", "plan", row.recipe, "--topology", row.topology]
        command += ["--json", str(file), *row.flags.split()]
        command += ["--num-slices", str(row.num_slices)] if row.num_slices > 1 else []
        env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        plan = json.loads(file.read_text())
    return {name: quantities(step) for name, step in plan["steps"].items()}


def quantities(step: dict[str, Any]) -> dict[str, float]:
    """The quantities of a step of a plan, of which less is better."""
    found = {"arrays in memory, bytes": step["memory"]["total"] - step["memory"]["code"], "FLOPs": step["flops"]}
    found["work of a chip, us"] = round(1e6 * step["chip_s"], 1)
    for network in ("fast", "slow"):
        sent = [each for each in step["traffic"] if each["is_slow"] == (network == "slow")]
        found[f"{network} network, collectives"] = sum(each["runs"] for each in sent)
        found[f"{network} network, bytes"] = sum(each["num_bytes"] for each in sent)
    return found


def traced_flops(name: str) -> dict[str, int]:
    """FLOPs of products of matrices and convolutions in each kind of step of a recipe, and in the plain one.

    Over all chips, with what is computed again, on the mesh of all devices here. A recipe without a penalty gets SAM.
    Nothing is compiled.
    """
    config = recipe.load(name)
    if config.gnp.alpha == 0:
        config = replace(config, gnp=GnpConfig(alpha=1))
    with jax.set_mesh(make_mesh(MeshConfig())):
        task = make_task(config, absent_data.load(config.data, None))
        kinds = sorted({StepKind.PLAIN, *count_kinds(task)})
        return {kind.name.lower(): flops_of(task, kind) for kind in kinds}


def write_flops() -> None:
    """Writes the file of all recipes."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    found = {}
    for name in RECIPES:
        print(f"tracing {name}", file=sys.stderr)
        found[name] = traced_flops(name)
    FLOPS_FILE.write_text(json.dumps({"command": FLOPS_COMMAND, "recipes": found}, indent=1) + "\n")


def main(names: list[str]) -> None:
    """Writes the rows named on the command line, or all, into the file."""
    rows = ROWS | RECIPES
    for name in names or ROWS:
        row = rows[name]
        print(row.missing or f"planning {name}", file=sys.stderr)
        if row.missing is None:
            found = measure(row)
            golden = json.loads(FILE.read_text())
            golden |= {"command": COMMAND, "jax": version("jax"), "libtpu": version("libtpu")}
            golden["rows"] = {
                key: {**golden["rows"], name: found}[key] for key in rows if key in {*golden["rows"], name}
            }
            FILE.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] == ["flops"]:
        write_flops()
    else:
        main(sys.argv[1:])
