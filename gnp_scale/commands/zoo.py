"""The commands that list what there is: `gnp-scale models | recipes`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnp_scale.checks import local_path
from gnp_scale.commands.common import on_cpu
from gnp_scale.exit_codes import Exit


def add(commands: Any) -> None:
    """Adds the commands to the parsers `commands`."""
    models = commands.add_parser("models", help="list the networks, with parameters and multiply-adds")
    models.add_argument("parts", metavar="PART", nargs="*", help="only names that contain one of these")
    models.set_defaults(command=_models, takes_flags=False)

    recipes = commands.add_parser("recipes", help="list recipes, with their results", allow_abbrev=False)
    recipes.add_argument("path", metavar="PATH", nargs="?", help="a file or folder (default: those of this project)")
    recipes.add_argument("--format", metavar="FORMAT", choices=("text", "markdown"), default="text", help="or markdown")
    recipes.set_defaults(command=_recipes, takes_flags=False)


def _models(options: argparse.Namespace, flags: Sequence[str]) -> int:
    on_cpu()
    from gnp_scale.catalogue import networks

    names = networks.matching(options.parts)
    print(f"{'network':<22}{'parameters':>16}{'multiply-adds':>16}{'image':>7}{'classes':>9}")
    for name in names:
        network = networks.published(name)
        num_params, num_products = network.num_params_and_products()
        sizes = f"{network.image_size:>7}{network.num_classes:>9}"
        # A network with many layers takes seconds.
        print(f"{name:<22}{num_params:>16,}{num_products / 1e9:>14.3f} G{sizes}", flush=True)
    return Exit.FINISHED


def _recipes(options: argparse.Namespace, flags: Sequence[str]) -> int:
    on_cpu()
    from gnp_scale import recipe
    from gnp_scale.catalogue import recipes
    from gnp_scale.run.console import make_console

    shown = Path("configs") if options.path is None else local_path("PATH", options.path)
    path = recipe.shipped() / shown if options.path is None else shown
    entries, console = recipes.find(path, shown), make_console()
    if options.format == "markdown":
        print(recipes.as_markdown(entries), end="")
    elif console.is_terminal:
        console.print(recipes.as_table(entries))
    else:
        print("\n".join(recipes.as_lines(entries)))
    return Exit.FINISHED
