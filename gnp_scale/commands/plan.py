"""`gnp-scale plan`."""

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnp_scale.arguments import at_least
from gnp_scale.checks import check, local_path
from gnp_scale.commands.common import import_jax
from gnp_scale.config import ConfigError
from gnp_scale.exit_codes import Exit
from gnp_scale.resilience.signals import take_back
from gnp_scale.run.streams import say

if TYPE_CHECKING:
    from gnp_scale.data.dataset import Dataset
    from gnp_scale.planning.alternatives import Alternatives
    from gnp_scale.planning.plan import Plan

_USAGE = (
    "gnp-scale plan FILE:FUNCTION --topology CHIP:SHAPE",
    ("--topology", "--num-slices", "--num-classes", "--fit", "--plot", "--json"),
)
_ENDS = {"json": ".json", "plot": ".png"}


def add(commands: Any) -> None:
    """Adds the command to the parsers `commands`."""
    plan = commands.add_parser(
        "plan", help="estimate memory and time of a run on hardware that is not there", allow_abbrev=False
    )
    plan.add_argument("recipe", metavar="FILE:FUNCTION", help="as for train; flags of train follow")
    plan.add_argument("--topology", required=True, help="such as v5e:16x16, v5p:8x16x16, or h100:8x16 (GPUs x hosts)")
    plan.add_argument("--num-slices", type=at_least(1), default=1, help="slices of TPUs (default: %(default)s)")
    plan.add_argument("--num-classes", type=at_least(1), help="of a data set that is not here")
    plan.add_argument("--fit", action="store_true", help="look for flags with which the run fits into memory")
    plan.add_argument("--plot", metavar="FILE.png", help="compile other methods and sizes too, and draw them (minutes)")
    plan.add_argument("--json", metavar="FILE.json", help="also write the plan into this file")
    plan.set_defaults(command=_plan, takes_flags=True)


def _plan(options: argparse.Namespace, flags: Sequence[str]) -> int:
    files = {name: getattr(options, name) for name in ("json", "plot")}
    paths = {name: local_path(f"--{name}", file) for name, file in files.items() if file is not None}
    _check_writable(paths)
    _prepare(options.topology)
    from gnp_scale.planning import report
    from gnp_scale.planning.alternatives import compile_alternatives
    from gnp_scale.planning.picture import draw_plan
    from gnp_scale.run.files import write_output
    from gnp_scale.sweeps.chart import png

    plan, dataset, name = _make(options, flags)
    print(report.text(plan, name), end="", flush=True)

    def write_json(beside: "Alternatives | None") -> None:
        if "json" in paths:
            write_output(
                paths["json"], json.dumps(report.numbers(plan, name, beside), indent=2).encode() + b"\n", "--json"
            )

    # The alternatives take long, and may be stopped.
    write_json(None)
    if "plot" in paths:
        beside = compile_alternatives(plan, dataset, say)
        write_json(beside)
        write_output(paths["plot"], png(draw_plan(plan, beside, name)), "--plot")
    return Exit.FINISHED


def _make(options: argparse.Namespace, flags: Sequence[str]) -> "tuple[Plan, Dataset, str]":
    """The plan, the data set, and the name of the recipe with the flags that were given and found."""
    from gnp_scale import recipe
    from gnp_scale.planning import absent_data
    from gnp_scale.planning.compiled import DoesNotFitError
    from gnp_scale.planning.fit import fit
    from gnp_scale.planning.hardware import GIB, Cluster
    from gnp_scale.planning.plan import make_plan

    cluster = Cluster(options.topology, options.num_slices)
    config = recipe.override(recipe.load(options.recipe), flags, *_USAGE)
    dataset, name = absent_data.load(config.data, options.num_classes), " ".join([options.recipe, *flags])
    cluster.devices()
    take_back()
    say(f"compiling the steps for {cluster.name}: may take minutes")
    if options.fit:
        added = fit(config, cluster, dataset, say)
        config, name = recipe.override(config, added, *_USAGE), " ".join([name, *added])
    try:
        return make_plan(config, cluster, dataset), dataset, name
    except DoesNotFitError as error:
        limit = cluster.chip.memory_bytes / GIB
        raise ConfigError(f"{error}, and a chip has {limit:.2f}: add --fit to look for what to change") from error


def _prepare(topology: str) -> None:
    """Sets what the compilers read when JAX is imported."""
    from gnp_scale.planning.variables import environment

    os.environ.update(environment(topology))
    # The compiler for GPUs writes a line for each program that is too large.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import_jax()


def _check_writable(paths: Mapping[str, Path]) -> None:
    """Before anything is compiled, which takes minutes."""
    for name, path in paths.items():
        check(path.suffix == _ENDS[name], f"--{name} is {path}: give the name of a file that ends in {_ENDS[name]}")
        is_folder = path.parent.is_dir() and os.access(path.parent, os.W_OK) and not path.is_dir()
        check(is_folder, f"--{name} {path} cannot be written: name a file in a folder that is there and is writable")
